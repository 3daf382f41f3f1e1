"""The build's facts in the manifest and in the binaries: they must come from one build.

A binary carries them as JSON after the marker `FD_STAMP:`, so that they are compared before it is loaded,
and exports them, so that what was loaded is compared once more.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.host.find import Found

MARKER = b"FD_STAMP:"
Stamp = dict[str, Any]


def stamp_in(file: Path) -> Stamp | None:
    """The stamp in a binary's bytes; None if it carries none that can be read."""
    if not file.stat().st_size:
        return None
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(MARKER)
        end = data.find(b"\0", start)
        text = data[start + len(MARKER) : end] if start >= 0 and end >= 0 else b""
    try:
        facts = json.loads(text)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None


def check_files(found: Found, folder: Path, patterns: Iterable[str], manifest: Stamp) -> Verdict:
    """Every binary that the manifest's patterns name carries the manifest's stamp."""
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    if not files:
        want, fix = " ".join(patterns), f"pip install --force-reinstall {found.distribution}"
        return Verdict.no(ReasonCode.NOT_BUILT, f"binaries of {found}", want, "no file", fix)
    return Verdict.all(same_stamp(found, file.name, manifest, stamp_in(file) or {}) for file in files)


def same_stamp(found: Found, binary: str, manifest: Stamp, stamp: Stamp) -> Verdict:
    names = [n for n in sorted({*manifest, *stamp}) if manifest.get(n) != stamp.get(n)]
    if not names:
        return YES
    want, have = (", ".join(f"{n} {facts.get(n)}" for n in names) for facts in (manifest, stamp))
    fix = f"files of two builds are mixed: pip install --force-reinstall {found.distribution}"
    return Verdict.no(ReasonCode.ABI, f"{binary} of {found}", want, have, fix)
