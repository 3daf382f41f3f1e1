"""Writes src/fd_xpu/fd_plugin.json from the declarations beside it: `python plugins/xpu/write_manifest.py`.

The package is pure Python, so the manifest is written by its authors, not by a build; a test compares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fd_xpu.kernels import VERSION, stamp
from fd_xpu.variables import VARIABLES

FILE = Path(__file__).parent / "src/fd_xpu/fd_plugin.json"


def manifest() -> dict[str, Any]:
    return {
        "name": "fd-xpu",
        "version": VERSION,
        "api": {"min": [1, 0], "max": [1, 0]},
        "os": ["linux"],
        "platforms": ["xpu"],
        "environment": [dict(row) for row in VARIABLES],
        "stamp": stamp(),
    }


def text() -> str:
    return json.dumps(manifest(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
