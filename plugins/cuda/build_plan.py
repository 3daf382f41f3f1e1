"""Turns kernels.toml and FD_CUDA_ARCHS into what CMake needs, and writes the manifest and its stamp.

    python build_plan.py --out BUILD --archs "80 90a" --nvcc /usr/local/cuda/bin/nvcc

Writes plan.cmake (each source with its targets), stamp.cc (exports `fd_stamp`) and fd_plugin.json. Needs
nothing but Python (and tomli before 3.11): fd-core is not there while its plug-ins are built.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from toolkit import library_folder, release  # noqa: E402

CORE = HERE.parents[1] / "fd_core" / "include"
#: What FD_CUDA_ARCHS may name, and the default; 70 is compiled by NVRTC 12.9, all others by nvcc 13.
TARGETS = ("70", "75", "80", "86", "89", "90a", "100a", "120a")
DEFAULT = TARGETS
FLAGS = (
    "-std=c++17",
    "-O3",
    "-DFD_DEVICE_TYPE=kDLCUDA",
    "--expt-relaxed-constexpr",
    "-Xfatbin=-compress-all",
    "-static-global-template-stub=false",  # sm_70's table refers to kernels by symbol
    "-Xcompiler",
    "-fPIC,-fvisibility=hidden,-Wall,-Wextra",
)


def read_toml(name: str) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((HERE / name).read_text(encoding="utf-8"))
    return table


def parse_archs(text: str) -> tuple[str, ...]:
    """Targets of a list such as "80;90a" or "sm_80, sm_90"; () for "none"; the default for ""."""
    words = [word.removeprefix("sm_") for word in re.split(r"[;,\s]+", text.strip()) if word]
    if not words:
        return DEFAULT
    if words == ["none"]:
        return ()
    full = [word if word in TARGETS else f"{word}a" for word in words]
    unknown = [word for word, target in zip(words, full, strict=True) if target not in TARGETS]
    if unknown:
        want = ", ".join(TARGETS)
        raise SystemExit(f"fd-cuda: FD_CUDA_ARCHS: want none, or some of {want}; have {' '.join(unknown)}")
    return tuple(target for target in TARGETS if target in full)


def runs_on(row: dict[str, Any], target: str) -> bool:
    """As fd_cuda.table.Entry.runs_on, which is not importable while this builds."""
    only = row.get("only", ())
    return target in only if only else int(target.rstrip("a")) >= row.get("from", 70)


def sources(table: dict[str, Any], targets: Collection[str]) -> dict[str, list[str]]:
    """File -> the targets it is compiled for: those of all entries that name it."""
    files: dict[str, set[str]] = {file: set(targets) for file in table["support"]["common"]}
    for part in ("ops", "private"):
        for name, row in table.get(part, {}).items():
            given = row.get("source", f"{name}.cu")
            for file in [given] if isinstance(given, str) else given:
                fitting = {target for target in targets if runs_on(row, target)}
                files[file] = files.get(file, set()) | fitting
    return {file: [t for t in TARGETS if t in found] for file, found in files.items() if found}


def digest() -> str:
    """Of everything that is compiled, and of the lists that say how."""
    total = hashlib.sha256()
    lists = [HERE / name for name in ("kernels.toml", "CMakeLists.txt")]
    files = [*(HERE / "csrc").rglob("*.*"), *CORE.rglob("*.h"), *lists]
    for file in sorted(f for f in files if f.is_file()):
        total.update(file.name.encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:16]


def git_id() -> str:
    """The commit, with -dirty for a changed tree; "unknown" outside a repository."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def version() -> str:
    found: str = read_toml("pyproject.toml")["project"]["version"]
    return found


def stamp(targets: Iterable[str], compiler: str) -> dict[str, Any]:
    facts = {"name": "fd-cuda", "version": version(), "git": git_id(), "compiler": compiler}
    return {**facts, "targets": list(targets), "digest": digest()}


def manifest(facts: dict[str, Any]) -> dict[str, Any]:
    variables = runpy.run_path(str(HERE / "src/fd_cuda/variables.py"))["VARIABLES"]
    head = {"name": "fd-cuda", "version": version(), **read_toml("plugin.toml")}
    return {**head, "environment": variables, "stamp": facts}


def write(path: Path, text: str) -> None:
    """Leaves an equal file alone, so that nothing is compiled again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """`facts` empty: for a library that a developer names."""
    data = manifest(facts)
    if not facts.get("targets"):
        data["stamp"], data["binaries"] = {}, []
    write(folder / "fd_plugin.json", json.dumps(data, indent=2) + "\n")


def for_nvcc(targets: list[str]) -> list[str]:
    """nvcc 13 knows no sm_70; a file that is for nothing newer still needs some code for the link."""
    return [target for target in targets if target != "70"] or ["75"]


def plan(targets: tuple[str, ...], nvcc: str) -> str:
    """The CMake file. FD_TARGETS_x: what a source is for; FD_NVCC_x: what nvcc makes of it."""
    files = sources(read_toml("kernels.toml"), targets)
    lists: dict[str, Iterable[str]] = {"FD_SOURCES": files, "FD_TARGETS": targets, "FD_FLAGS": FLAGS}
    lists |= {f"FD_TARGETS_{file}": found for file, found in files.items()}
    lists |= {f"FD_NVCC_{file}": for_nvcc(found) for file, found in files.items()}
    lists["FD_LINK"] = [library_folder(nvcc)] if nvcc else []
    return "".join(f"set({name} {' '.join(items)})\n" for name, items in lists.items())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write plan.cmake, stamp.cc and fd_plugin.json.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--archs", default="")
    parser.add_argument("--nvcc", default="")
    args = parser.parse_args()
    targets = parse_archs(args.archs)
    if targets and not args.nvcc:
        raise SystemExit(
            "fd-cuda: want nvcc of CUDA 13 (CUDACXX, PATH, or pip install nvidia-cuda-nvcc==13.0.*), have "
            "none; "
            "fix: install it, or FD_CUDA_ARCHS=none for a plug-in without kernels"
        )
    facts = stamp(targets, "nvcc " + ".".join(map(str, release(args.nvcc))) if args.nvcc else "none")
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "plan.cmake", plan(targets, args.nvcc))
    literal = json.dumps(json.dumps(facts))
    write(args.out / "stamp.cc", f'#include "fd/stamp.h"\n\nFD_STAMP({literal})\n')
    write_manifest(args.out, facts)


if __name__ == "__main__":
    main()
