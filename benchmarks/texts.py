"""English text that quality is measured on, up to 40,000 characters each.

- `heldout`: the start of the embedded model's held-out sample. Calibration variants were picked on it.
- `fresh`: the next part of that sample, less the document that goes on in the calibration text. It was
  looked at when scales and the target of calibration were chosen.
- `docstrings`: prose of NumPy's docstrings: another source, the same field; nothing was picked on it. The
  version is NumPy's.

`calibration()` is the sample from 80,000 on: calibration reads it, nothing is scored on it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fd_core.engine.build import EMBEDDED

CHARACTERS, CALIBRATION_FROM = 40_000, 80_000
DOCUMENT = "\n# "
NAMES = ("heldout", "fresh", "docstrings")


def text(name: str, characters: int = CHARACTERS) -> str:
    """The first characters of one of NAMES, or of a file."""
    return _whole(name)[:characters]


def _whole(name: str) -> str:
    if name == "docstrings":
        return "\n\n".join(prose())
    if name not in NAMES:
        return Path(name).read_text(encoding="utf-8")
    if name == "heldout":
        return sample()[:CHARACTERS]
    return sample()[CHARACTERS:CALIBRATION_FROM].rsplit(DOCUMENT, 1)[0]


def sample() -> str:
    return (EMBEDDED / "heldout.txt").read_text(encoding="utf-8")


def calibration() -> str:
    return sample()[CALIBRATION_FROM:]


def prose() -> Iterator[str]:
    """Paragraphs of sentences, in the order of file and line, each once."""
    seen = set()
    for docstring in docstrings():
        for paragraph in re.split(r"\n\s*\n", docstring):
            joined = " ".join(paragraph.split())
            if is_prose(joined) and joined not in seen:
                seen.add(joined)
                yield joined


def docstrings() -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for file in sorted(Path(np.__file__).parent.rglob("*.py")):
        if "tests" not in file.parts:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, documented):
                    yield ast.get_docstring(node) or ""


def is_prose(paragraph: str) -> bool:
    """Whole sentences, of letters for the most part, without code or markup."""
    if len(paragraph) < 160 or not paragraph[0].isupper() or not paragraph.endswith("."):
        return False
    plain = sum(c.isalpha() or c.isspace() for c in paragraph) / len(paragraph)
    return plain > 0.94 and not re.search(r">>>|::|:\w+:|``|---|===", paragraph)
