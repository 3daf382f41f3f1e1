"""Compile some kernels for this machine alone, in seconds, without installing anything.

    python plugins/cpu/dev_build.py rms_norm swiglu -o /tmp/mine.so      # default: every op
    FD_CPU_LIBRARY=/tmp/mine.so python -m pytest tests/operators -k rms_norm

Objects are cached beside the output, so that only changed sources are compiled again. A manifest without
a stamp is written beside the Python sources, so that fd-core accepts the plug-in from this checkout.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORE = HERE.parents[1] / "fd_core/include"
sys.path[:0] = [str(HERE / "src"), str(HERE)]

from build_plan import write_manifest  # noqa: E402
from fd_cpu.ladder import best_level, common_flags, level_flags  # noqa: E402
from fd_cpu.table import read_table  # noqa: E402


def compile_one(source: Path, folder: Path, flags: list[str]) -> Path:
    target = folder / f"{source.stem}.o"
    folders = (HERE / "csrc/include", CORE)
    headers = max(h.stat().st_mtime for folder in folders for h in folder.rglob("*.h"))
    newest = max(source.stat().st_mtime, headers)
    if not target.exists() or target.stat().st_mtime < newest:
        subprocess.run(["c++", *flags, "-c", str(source), "-o", str(target)], check=True)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("ops", nargs="*")
    parser.add_argument("-o", "--out", type=Path, default=Path("/tmp/fd_cpu_dev.so"))
    parser.add_argument("--level", default=best_level().name)
    args = parser.parse_args()
    import tvm_ffi.libinfo as info

    table = read_table(HERE / "kernels.toml")
    entries = {**table.ops, **table.private}
    ops = args.ops or list(entries)
    names = dict.fromkeys([*table.common, *(s for op in ops for s in entries[op].sources)])
    includes = [HERE / "csrc/include", CORE, info.find_include_path(), info.find_dlpack_include_path()]
    flags = [*common_flags(), *level_flags(args.level), *(f"-I{path}" for path in includes)]
    folder = args.out.with_suffix(f".{args.level}.objects")
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda s: compile_one(HERE / "csrc" / s, folder, flags), names))
    link = ["c++", "-shared", "-pthread", "-o", str(args.out), *map(str, objects)]
    subprocess.run([*link, info.find_libtvm_ffi()], check=True)
    write_manifest(HERE / "src/fd_cpu", {})
    print(args.out)


if __name__ == "__main__":
    main()
