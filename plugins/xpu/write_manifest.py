"""Writes src/fd_xpu/fd_plugin.json from the declarations beside it: `python plugins/xpu/write_manifest.py`.

The package is pure Python, so the manifest is written by its authors, not by a build; a test compares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fd_xpu.facts import Facts
from fd_xpu.kernels import VERSION, stamp
from fd_xpu.probe import judge
from fd_xpu.variables import VARIABLES

FILE = Path(__file__).parent / "src/fd_xpu/fd_plugin.json"


def manifest() -> dict[str, Any]:
    return {
        "name": "fd-xpu",
        "version": VERSION,
        "api": {"min": [1, 0], "max": [1, 0]},
        "os": ["linux"],
        "platforms": ["xpu"],
        "presence": presence(),
        "environment": [dict(row) for row in VARIABLES],
        "stamp": stamp(),
    }


def presence() -> dict[str, Any]:
    """Every device has a node; the words are the probe's. Paddle's CPU place in its place needs none."""
    (none,) = judge(Facts()).reasons
    words = {name: getattr(none, name) for name in ("subject", "want", "have", "fix")}
    return {"paths": ["/dev/xpu*"], "unless": ["FD_XPU_PLACE"], **words}


def text() -> str:
    return json.dumps(manifest(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
