"""`fd new-plugin NAME`: write a plug-in that runs the whole engine on its first day."""

from __future__ import annotations

import argparse
import json
import re
import sys
from importlib.resources import files
from pathlib import Path

from fd_core.api.version import PLUGIN_API
from fd_core.host.errors import FdError

#: Template -> file of the plug-in.
BASE = {
    "base/pyproject.toml.in": "pyproject.toml",
    "base/init.py.in": "src/fd_@name@/__init__.py",
    "base/manifest.json.in": "src/fd_@name@/fd_plugin.json",
    "base/test_conformance.py.in": "tests/test_conformance.py",
}
KERNEL = {
    "kernel/setup.py.in": "setup.py",
    "kernel/kernels.py.in": "src/fd_@name@/kernels.py",
    "kernel/rms_norm.c.in": "csrc/rms_norm.c",
}
NAME = re.compile(r"[a-z][a-z0-9]{0,30}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of the device, such as hello: the package becomes fd-hello")
    parser.add_argument("--kernel", action="store_true", help="with one compiled kernel, in C")
    parser.add_argument("--into", type=Path, default=Path(), metavar="FOLDER", help="default: here")


def run(args: argparse.Namespace) -> int:
    written = write(args.name, args.into, args.kernel)
    folder = f"{args.into}/fd-{args.name}"
    sys.stdout.write("".join(f"wrote {file}\n" for file in written))
    sys.stdout.write(
        f"\nnext:  pip install -e {folder}\n"
        f"       fd doctor\n"
        f"       pytest {folder}\n"
        f"       FD_FALLBACK=allow fd generate --platform {args.name} 'def add(a, b):'\n"
    )
    return 0


def write(name: str, into: Path, kernel: bool = False) -> list[Path]:
    """The files written, under `into`/fd-NAME. FdError, before anything is, for a bad name or folder."""
    if not NAME.fullmatch(name):
        raise FdError(f"new-plugin: want a name of small letters and digits, have {name!r}")
    folder = into / f"fd-{name}"
    if folder.exists():
        raise FdError(f"new-plugin: want a new folder, have {folder}; remove it or choose another name")
    return [_write(folder / _fill(to, name), text) for to, text in contents(name, kernel).items()]


def contents(name: str, kernel: bool) -> dict[str, str]:
    """Text of every file by its path inside the plug-in's folder."""
    rows = {**BASE, **(KERNEL if kernel else {})}
    made = {_fill(to, name): _fill(_template(source), name, kernel) for source, to in rows.items()}
    if kernel:
        made[f"src/fd_{name}/__init__.py"] += _fill(_template("kernel/hook.py.in"), name)
    return made


def _template(source: str) -> str:
    return (files("fd_core") / "assets" / "plugin" / source).read_text(encoding="utf-8")


def _fill(text: str, name: str, kernel: bool = False) -> str:
    requires = ["setuptools>=68", "apache-tvm-ffi>=0.1.15,<0.2"] if kernel else ["setuptools>=68"]
    words = {
        "name": name,
        "Name": name.capitalize(),
        "api": json.dumps(PLUGIN_API),
        "requires": ", ".join(map(json.dumps, requires)),
    }
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def _write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file
