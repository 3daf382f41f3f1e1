"""Collect the copyright notices of the packages whose text is in heldout.txt."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from sources import SHARED

# These packages keep their copyright file in another package, or in a form of their own.
BY_HAND = {
    "rust-doc": "Copyright: The Rust Project Developers\nLicense: MIT or Apache-2.0",
    "cmake-doc": (
        "Copyright: 2000-2022 Kitware, Inc., Insight Software Consortium\n"
        "License: BSD-3-Clause (the terms are those given under ghc-doc)"
    ),
    "python3.11-doc": "Copyright: 2001-2023 Python Software Foundation\nLicense: PSF-2.0",
    "racket-doc": "Copyright: 1995-2022 PLT Design Inc.\nLicense: MIT or Apache-2.0",
}
HEAD = """heldout.txt holds the prose of the documents listed here, taken from Debian 12 packages with code,
tables and repeated paragraphs left out. Each is under the licence named with its package; the full
notices are in /usr/share/doc/PACKAGE/copyright of the Debian package.
"""


def copyright_file(archive: Path, package: str) -> str:
    packed = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE)
    member = f"./usr/share/doc/{package}/copyright"
    done = subprocess.run(["tar", "-xO", member], stdin=packed.stdout, capture_output=True, check=False)
    packed.wait()
    return done.stdout.decode("utf-8", "replace")


def stanza(text: str, pattern: str) -> str:
    found = (part for part in re.split(r"\n\s*\n", text) if re.search(pattern, part, re.MULTILINE))
    return next(found, "").strip()


def notice(work: Path, package: str) -> str:
    """Return a package's main copyright stanza and the text of the licence it names."""
    if package in BY_HAND:
        return BY_HAND[package]
    archive = sorted((work / "deb").glob(f"{package}_*.deb"))[-1]
    text = copyright_file(archive, package)
    main = stanza(text, r"^Files: ?\n? ?\*")
    name = re.search(r"^License: *(.+)$", main, re.MULTILINE)
    terms = stanza(text, rf"^\A\s*License: *{re.escape(name[1])}$") if name else ""
    return "\n\n".join(part for part in (main, terms) if part) or f"License: {SHARED[package]}"


def notices(work: Path) -> str:
    documents: dict[str, list[str]] = {}
    for line in (work / "heldout.jsonl").open():
        doc = json.loads(line)
        documents.setdefault(doc["package"], []).append(f"/{doc['path']}")
    parts = [HEAD]
    for package in sorted(documents):
        listed = "\n".join(sorted(documents[package]))
        parts.append(f"\n{'=' * 20} {package}\n{listed}\n\n{notice(work, package)}\n")
    return "".join(parts)
