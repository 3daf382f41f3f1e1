"""Prints the path of the nvcc to build with: CUDACXX, PATH, or the packages pip installs; CUDA 13 only.

Prints nothing if there is none (FD_CUDA_ARCHS=none needs none).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

MAJOR = 13


def candidates() -> list[str]:
    """In order of preference: what the user names, what is installed, what pip brought."""
    pip = [str(path) for folder in sys.path for path in Path(folder or ".").glob("nvidia/cu*/bin/nvcc")]
    return [path for path in (os.environ.get("CUDACXX"), shutil.which("nvcc"), *pip) if path]


def release(nvcc: str) -> tuple[int, int]:
    """(major, minor); (0, 0) for what cannot be run."""
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 0, 0
    found = re.search(r"release (\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def choose() -> str | None:
    return next((nvcc for nvcc in candidates() if release(nvcc)[0] == MAJOR), None)


def library_folder(nvcc: str) -> str:
    """-L option for the runtime library, where pip's layout hides it from nvcc; else empty."""
    lib = Path(nvcc).resolve().parents[1] / "lib"
    return f"-L{lib}" if (lib / "libcudart_static.a").exists() else ""


if __name__ == "__main__":
    print(choose() or "")
