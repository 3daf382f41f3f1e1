"""Files under version control that must say what the code says: the plug-in interface, the matrix."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from fd_core.api.version import PLUGIN_API

TOOLS = Path(__file__).parents[2] / "tools" / "docs"


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(TOOLS / "write_api.py"))


@pytest.fixture(scope="module")
def committed(tool: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(tool["TARGET"].read_text(encoding="utf-8"))
    return data


class TestInterface:
    def test_every_signature_is_the_committed_one(
        self, tool: dict[str, Any], committed: dict[str, Any]
    ) -> None:
        """After a change: raise PLUGIN_API as the message says, then python tools/docs/write_api.py."""
        now = json.loads(json.dumps(tool["dump"]()))
        assert not tool["problem"](committed, now)
        breaking, added = tool["changes"](committed["names"], now["names"])
        assert not breaking + added, "run python tools/docs/write_api.py"
        assert committed["plugin_api"] == list(PLUGIN_API)

    def test_names_are_the_ones_authors_use(self, committed: dict[str, Any]) -> None:
        names = committed["names"]
        assert names["platform.Platform.open"] == "abstract function (self, index: 'int') -> 'DeviceInfo'"
        assert names["verdict.ReasonCode.ARCH"] == "member 'ARCH'"
        assert names["kernel.Kernel.priority"] == "field int"
        assert "hookspecs.fd_kernels" in names

    @pytest.mark.parametrize(
        ("change", "version", "want"),
        [
            ({"a.f": "function (x)"}, (1, 0), ""),
            ({"a.f": "function (x)", "a.g": "function ()"}, (1, 0), "(1, 1)"),
            ({"a.f": "function (x)", "a.g": "function ()"}, (1, 1), ""),
            ({"a.f": "function (x, y)"}, (1, 1), "(2, 0)"),
            ({}, (1, 9), "(2, 0)"),
            ({"a.f": "function (x)", "a.C.m": "abstract function (self)"}, (1, 1), "(2, 0)"),
            ({"a.f": "function (x, y)"}, (2, 0), ""),
        ],
    )
    def test_what_a_change_asks_for(
        self, tool: dict[str, Any], change: dict[str, str], version: tuple[int, int], want: str
    ) -> None:
        old = {"plugin_api": [1, 0], "names": {"a.f": "function (x)"}}
        text = tool["problem"](old, {"plugin_api": list(version), "names": change})
        assert (f"want PLUGIN_API of at least {want}" in text) if want else text == ""


def test_matrix_is_the_committed_one() -> None:
    """After a change of kernels.toml or of the catalogue: python tools/docs/write_matrix.py."""
    tool = runpy.run_path(str(TOOLS / "write_matrix.py"))
    if tool["missing"]():
        pytest.skip(f"not installed: {', '.join(tool['missing']())}")
    assert tool["document"]() == tool["TARGET"].read_text(encoding="utf-8")


def test_equal_neighbours_share_a_column() -> None:
    merged = runpy.run_path(str(TOOLS / "write_matrix.py"))["merged"]
    a, b = {"op": "all"}, {"op": "-"}
    found = [("x", "1", a), ("x", "2", dict(a)), ("x", "3", b), ("x", "4", a), ("y", "1", a)]
    assert merged(found) == [("x", ["1", "2"], a), ("x", ["3"], b), ("x", ["4"], a), ("y", ["1"], a)]
