"""Turns kernels.toml and isa.toml into what CMake needs, and writes the manifest and its stamp.

    python build_plan.py --out BUILD --machine x86_64 --compiler "GNU 12.2"

Writes plan.cmake (levels, flags, sources), stamp.cc (exports `fd_stamp`) and fd_plugin.json. Needs nothing
but Python (and tomli before 3.11): fd-core is not there while its plug-ins are built.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
FAMILIES = {"arm64": "aarch64", "AMD64": "x86_64", "amd64": "x86_64"}


def read_toml(name: str) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((HERE / name).read_text(encoding="utf-8"))
    return table


def sources(table: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(tuned, untuned) files. A file that both kinds of entries name is tuned."""
    files: dict[str, bool] = dict.fromkeys(table["support"]["common"], False)
    for part in ("ops", "private"):
        for name, row in table.get(part, {}).items():
            given = row.get("source", f"{name}.cc")
            for file in [given] if isinstance(given, str) else given:
                files[file] = files.get(file, False) or row.get("tuned", False)
    return [f for f, tuned in files.items() if tuned], [f for f, tuned in files.items() if not tuned]


def digest() -> str:
    """Of everything that is compiled, and of the lists that say how."""
    total = hashlib.sha256()
    files = [
        *(HERE / "csrc").rglob("*.*"),
        *(HERE / "../../fd_core/include").rglob("*.h"),
        *(HERE / n for n in ("kernels.toml", "isa.toml", "CMakeLists.txt")),
    ]
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


def stamp(levels: list[str], machine: str, compiler: str) -> dict[str, Any]:
    facts = {"name": "fd-cpu", "version": version(), "git": git_id(), "compiler": compiler}
    return {**facts, "machine": machine, "levels": levels, "digest": digest()}


def manifest(facts: dict[str, Any], machine: str) -> dict[str, Any]:
    variables = runpy.run_path(str(HERE / "src/fd_cpu/variables.py"))["VARIABLES"]
    names = [machine, *(other for other, family in FAMILIES.items() if family == machine)]
    head = {"name": "fd-cpu", "version": version(), **read_toml("plugin.toml")}
    return {**head, "arch": names, "environment": variables, "stamp": facts}


def write(path: Path, text: str) -> None:
    """Leaves an equal file alone, so that nothing is compiled again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_manifest(folder: Path, facts: dict[str, Any], machine: str = platform.machine()) -> None:
    data = manifest(facts, FAMILIES.get(machine, machine))
    write(folder / "fd_plugin.json", json.dumps(data, indent=2) + "\n")


def stamp_source(facts: dict[str, Any]) -> str:
    literal = json.dumps(json.dumps(facts))
    return f'#include "fd/stamp.h"\n\nFD_STAMP({literal})\n'


def plan(machine: str) -> tuple[str, list[str]]:
    """(the CMake file, the names of the levels)."""
    ladder = read_toml("isa.toml")
    levels = ladder.get(machine)
    if levels is None:
        known = ", ".join(name for name in ladder if name != "common")
        raise SystemExit(f"fd-cpu: isa.toml has no levels for {machine!r}; it has {known}")
    tuned, untuned = sources(read_toml("kernels.toml"))
    base = min(levels, key=lambda name: levels[name]["rank"])
    lists = {"FD_LEVELS": list(levels), "FD_BASE": [base], "FD_TUNED": tuned, "FD_UNTUNED": untuned}
    lists["FD_FLAGS"] = ladder["common"]["flags"]
    lists |= {f"FD_FLAGS_{name}": row["flags"] for name, row in levels.items()}
    return "".join(f"set({name} {' '.join(items)})\n" for name, items in lists.items()), list(levels)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write plan.cmake, stamp.cc and fd_plugin.json.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--machine", default=platform.machine())
    parser.add_argument("--compiler", default="unknown")
    args = parser.parse_args()
    machine = FAMILIES.get(args.machine, args.machine)
    text, levels = plan(machine)
    facts = stamp(levels, machine, args.compiler)
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "plan.cmake", text)
    write(args.out / "stamp.cc", stamp_source(facts))
    write_manifest(args.out, facts, machine)


if __name__ == "__main__":
    main()
