"""The build with nothing but pip: one architecture by nvcc, sm_70 by NVRTC, or none. No GPU needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fd_cuda")
from fd_cuda.table import read_table

PLUGIN = Path(__file__).parents[2] / "plugins" / "cuda"


def wheel(archs: str, out: Path) -> zipfile.ZipFile:
    """Built as a user does, in pip's own isolated environment."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out)]
    options = [f"-Cbuild-dir={out}/build", str(PLUGIN)]
    env = {**os.environ, "FD_CUDA_ARCHS": archs}
    done = subprocess.run([*command, *options], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (file,) = out.glob("fd_cuda-*.whl")
    assert file.name.endswith("-py3-none-linux_x86_64.whl") or "manylinux" in file.name or archs == "none"
    return zipfile.ZipFile(file)


def manifest(built: zipfile.ZipFile) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(built.read("fd_cuda/fd_plugin.json"))
    return facts


def test_none_installs_table_and_probe_alone(tmp_path: Path) -> None:
    built = wheel("none", tmp_path)
    assert not [name for name in built.namelist() if name.endswith(".so")]
    assert manifest(built)["stamp"] == {}
    assert "fd_cuda/kernels.toml" in built.namelist()


def test_unknown_architecture_ends_the_build(tmp_path: Path) -> None:
    command = [sys.executable, "build_plan.py", "--out", str(tmp_path), "--archs", "61"]
    done = subprocess.run(command, cwd=PLUGIN, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "want none, or some of 70" in done.stderr


def test_no_compiler_ends_the_build_with_the_fix(tmp_path: Path) -> None:
    command = [sys.executable, "build_plan.py", "--out", str(tmp_path), "--archs", "90"]
    done = subprocess.run(command, cwd=PLUGIN, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "FD_CUDA_ARCHS=none" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_kernel_compiles_for_one_architecture_and_for_sm_70(tmp_path: Path) -> None:
    built = wheel("70;90", tmp_path)
    built.extract("fd_cuda/lib/libfd_cuda.so", tmp_path)
    library = tmp_path / "fd_cuda/lib/libfd_cuda.so"
    assert manifest(built)["stamp"]["targets"] == ["70", "90a"]
    check_linkage(library)
    check_exports(library)


def check_linkage(library: Path) -> None:
    """No RPATH, no CUDA library beside the driver's and TVM-FFI's."""
    command = ["readelf", "-d", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "RPATH" not in text
    assert "RUNPATH" not in text
    needed = [line.split("[")[1].rstrip("]") for line in text.splitlines() if "NEEDED" in line]
    system = ("libc.", "libm.", "libdl.", "librt.", "libpthread.", "libstdc++.", "libgcc_s.", "ld-linux")
    assert [name for name in needed if not name.startswith(system)] == ["libtvm_ffi.so"]


def check_exports(library: Path) -> None:
    """Everything the table lists for these architectures is there; no GPU is needed to load it."""
    table = read_table(PLUGIN / "kernels.toml")
    wanted = [e.op for e in (*table.ops.values(), *table.private.values()) if e.runs_on("90a")]
    program = (
        "import sys, tvm_ffi; lib = tvm_ffi.load_module(sys.argv[1]);"
        "print([op for op in sys.argv[2:] if not lib.implements_function(op)])"
    )
    command = [sys.executable, "-c", program, str(library), *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
