"""Where pip puts cuBLASLt, which the linear kernels open when they first need it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

#: The newest first; the calls that are made of it are the same in both.
NAMES = ("libcublasLt.so.13", "libcublasLt.so.12")


def library_files(folders: Iterable[str] | None = None) -> list[Path]:
    """The library in packages such as nvidia-cublas, under `folders` (default: where modules are found)."""
    roots = [Path(folder) / "nvidia" for folder in (sys.path if folders is None else folders)]
    return [file for name in NAMES for root in roots for file in sorted(root.glob(f"*/lib/{name}"))]
