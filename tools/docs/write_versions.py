"""Writes the table of versions in docs/plugins.md: which plug-ins load into which fd-core.

python tools/docs/write_versions.py        # tests/plugins/test_versions.py loads a plug-in for every cell
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from fd_core.api.manifest import ApiRange, Manifest, Version, check_manifest
from fd_core.api.verdict import Verdict
from fd_core.api.version import OLDEST_PLUGIN_API, PLUGIN_API

TARGET = Path(__file__).parents[2] / "docs" / "plugins.md"
BEGIN, END = "<!-- versions: tools/docs/write_versions.py -->", "<!-- end of versions -->"
MINOR, MAJOR = (PLUGIN_API[0], PLUGIN_API[1] + 1), (PLUGIN_API[0] + 1, 0)


@dataclass(frozen=True)
class Core:
    """An fd-core with its PLUGIN_API and OLDEST_PLUGIN_API."""

    api: Version
    oldest: Version


#: This one, the one after an addition, and two after a breaking change: with and without a time of grace.
CORES = (
    Core(PLUGIN_API, OLDEST_PLUGIN_API),
    Core(MINOR, OLDEST_PLUGIN_API),
    Core(MAJOR, OLDEST_PLUGIN_API),
    Core(MAJOR, MAJOR),
)
#: Ranges (min, max) of plug-ins from the oldest that is taken to the newest.
PLUGINS = tuple(
    dict.fromkeys(
        [
            (OLDEST_PLUGIN_API, OLDEST_PLUGIN_API),
            (PLUGIN_API, PLUGIN_API),
            (OLDEST_PLUGIN_API, MINOR),
            (MINOR, MINOR),
            (OLDEST_PLUGIN_API, MAJOR),
            (MAJOR, MAJOR),
        ]
    )
)


def outcome(core: Core, wants: tuple[Version, Version]) -> Verdict:
    """What `core` says of a plug-in's manifest."""
    manifest = Manifest(name="any", version="1", api=ApiRange(min=wants[0], max=wants[1]))
    return check_manifest(manifest, "any", system="", machine="", ffi="", api=core.api, oldest=core.oldest)


def table() -> str:
    heads = [f"core {text(core.api)}, takes {text(core.oldest)} on" for core in CORES]
    lines = ["| manifest's `api` | " + " | ".join(heads) + " |", "|---|" + "---|" * len(CORES)]
    for wants in PLUGINS:
        cells = [cell(outcome(core, wants)) for core in CORES]
        lines.append(f"| {text(wants[0])} to {text(wants[1])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(verdict: Verdict) -> str:
    return "loads" if verdict.ok else ", ".join(f"`{reason.code.value}`" for reason in verdict.reasons)


def text(version: Version) -> str:
    return ".".join(map(str, version))


def document() -> str:
    """docs/plugins.md with the table in its place."""
    page = TARGET.read_text(encoding="utf-8")
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        sys.exit(f"write_versions: want {BEGIN} and {END} in {TARGET}, have neither or one")
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
