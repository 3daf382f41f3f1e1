"""Rules of this repository that no linter knows: sizes, names of vendors, device tests, unsafe calls.

python tools/lint/check_style.py        # prints one line per offence; exit status 1 if any
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_METHODS = 12
#: Folders of fd_core whose subject is another framework.
GUESTS = ("fd_core/paddle/", "fd_core/compat/")
VENDOR = re.compile(r"\b(nvidia|cuda|cupy|cudnn|rocm|kunlun|torch|paddle|ascend)\b", re.IGNORECASE)
DEVICE_TEST = re.compile(r"\.is_(cuda|xpu|cpu|npu|gpu|rocm)\w*\(")
BANNED = {
    "pickle": "msgpack or safetensors",
    "marshal": "msgpack",
    "cloudpickle": "msgpack",
}
BANNED_CALLS = {"eval", "exec", "print"}
#: Compiles functions from the names of an op's parameters, as dataclasses does.
COMPILER = "fd_core/ops/compile_call.py"


def tracked(*suffixes: str) -> list[Path]:
    names = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout
    return [Path(n) for n in names.splitlines() if n.endswith(suffixes) and Path(n).exists()]


def file_sizes() -> Iterator[str]:
    for path in tracked(".py", ".cc", ".h", ".cu", ".cuh"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            yield f"{path}: {lines} lines, at most {MAX_FILE_LINES}"


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    total = (node.end_lineno or node.lineno) - node.lineno + 1
    doc = ast.get_docstring(node, clean=False)
    return total - (doc.count("\n") + 1 if doc else 0)


def shapes(path: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and body_lines(node) > MAX_FUNCTION_LINES
        ):
            lines = f"{body_lines(node)} lines, at most {MAX_FUNCTION_LINES}"
            yield f"{path}:{node.lineno}: {node.name} has {lines}"
        if isinstance(node, ast.ClassDef) and any(ast.unparse(b) == "ABC" for b in node.bases):
            methods = [n for n in node.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
            if len(methods) > MAX_METHODS:
                yield f"{path}:{node.lineno}: interface {node.name} has {len(methods)} methods"


def behaviour(path: Path, tree: ast.Module) -> Iterator[str]:
    banned = BANNED_CALLS - {"exec"} if str(path) == COMPILER else BANNED_CALLS
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                if name.split(".")[0] in BANNED:
                    yield f"{path}:{node.lineno}: import {name}; use {BANNED[name.split('.')[0]]}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in banned:
            yield f"{path}:{node.lineno}: {node.func.id}() is not used in the package"
        if isinstance(node, ast.keyword) and node.arg == "shell" and ast.unparse(node.value) == "True":
            yield f"{path}: shell=True"
        if isinstance(node, ast.ExceptHandler) and all(isinstance(b, ast.Pass) for b in node.body):
            yield f"{path}:{node.lineno}: an exception is swallowed in silence"


def vendors(path: Path, text: str) -> Iterator[str]:
    if str(path).startswith(GUESTS):
        return
    for number, line in enumerate(text.splitlines(), 1):
        found = VENDOR.search(line) or DEVICE_TEST.search(line)
        if found:
            yield f"{path}:{number}: {found.group(0)!r} does not belong into fd_core"


def package_rules() -> Iterator[str]:
    for path in tracked(".py"):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        yield from shapes(path, tree)
        if path.parts[0] == "fd_core":
            yield from behaviour(path, tree)
            yield from vendors(path, text)


def main() -> int:
    offences = [*file_sizes(), *package_rules()]
    sys.stdout.write("".join(f"{line}\n" for line in offences))
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
