"""Compile some kernels for one architecture, without installing anything.

    python plugins/cuda/dev_build.py rms_norm swiglu -o /tmp/mine.so      # default: every export
    FD_CUDA_LIBRARY=/tmp/mine.so fd conformance --platform cuda --op rms_norm

Objects are cached beside the output, so that only changed sources are compiled again. A manifest without
a stamp is written beside the Python sources, so that fd-core accepts the plug-in from this checkout.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "src"), str(HERE)]

from build_plan import CORE, FLAGS, write_manifest  # noqa: E402
from fd_cuda.table import read_table  # noqa: E402


def stale(target: Path) -> bool:
    """Whether something that `target` was made of (nvcc's own list) is newer."""
    rule = target.with_suffix(".d")
    if not target.exists() or not rule.exists():
        return True
    files = rule.read_text().replace("\\\n", " ").partition(":")[2].split()
    return any(not Path(f).exists() or Path(f).stat().st_mtime > target.stat().st_mtime for f in files)


def compile_one(source: Path, folder: Path, flags: list[str]) -> Path:
    target = folder / f"{source.stem}.o"
    if stale(target):
        rule = ["-MD", "-MF", str(target.with_suffix(".d"))]
        subprocess.run(["nvcc", *flags, *rule, "-c", str(source), "-o", str(target)], check=True)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("ops", nargs="*")
    parser.add_argument("-o", "--out", type=Path, default=Path("/tmp/fd_cuda_dev.so"))
    parser.add_argument("--arch", default="90a")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="registers, shared memory and spills")
    parser.add_argument(
        "--embedded", help="also by NVRTC for this architecture, used if FD_CUDA_EMBEDDED=1"
    )
    args = parser.parse_args()
    if shutil.which("nvcc") is None:
        raise SystemExit("dev_build: want nvcc on PATH; have none")
    import tvm_ffi.libinfo as info

    table = read_table(HERE / "kernels.toml")
    entries = {**table.ops, **table.private}
    chosen = [entries[op] for op in args.ops] or list(entries.values())
    fitting = [entry for entry in chosen if entry.runs_on(args.arch)]
    names = dict.fromkeys([*table.common, *(s for entry in fitting for s in entry.sources)])
    includes = [HERE / "csrc/include", CORE, info.find_include_path(), info.find_dlpack_include_path()]
    flags = [
        *FLAGS,
        "-lineinfo",
        f"-gencode=arch=compute_{args.arch},code=sm_{args.arch}",
        *(f"-I{p}" for p in includes),
    ]
    flags += ["-Xptxas", "-v"] if args.verbose else []
    folder = args.out.with_suffix(f".{args.arch}.objects")
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        objects = list(pool.map(lambda s: compile_one(HERE / "csrc" / s, folder, flags), names))
    if args.embedded:
        sources = {HERE / "csrc" / f"{obj.stem}.cu": obj for obj in objects}
        pairs = [f"{source}={obj}" for source, obj in sources.items() if source.exists()]
        out = folder / "sm_70.cc"
        command = [sys.executable, str(HERE / "nvrtc_build.py"), "--arch", args.embedded, "--out", str(out)]
        subprocess.run([*command, *pairs], check=True)
        objects.append(compile_one(out, folder, flags))
    link = ["nvcc", "-shared", "-cudart=static", "-o", str(args.out), *map(str, objects)]
    subprocess.run([*link, info.find_libtvm_ffi()], check=True)
    write_manifest(HERE / "src/fd_cuda", {})
    print(args.out)


if __name__ == "__main__":
    main()
