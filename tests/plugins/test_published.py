"""Files under version control that must say what the code says: the plug-in interface, the matrix."""

from __future__ import annotations

import inspect
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


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return runpy.run_path(str(TOOLS / "write_reference.py"))


class TestReference:
    def test_is_the_committed_one(self, reference: dict[str, Any]) -> None:
        """After a change in fd_core/api, docstrings included: python tools/docs/write_reference.py."""
        assert reference["document"]() == reference["TARGET"].read_text(encoding="utf-8")

    def test_every_public_name_is_in_it(self, committed: dict[str, Any], reference: dict[str, Any]) -> None:
        text = reference["document"]()
        constants = {"manifest.PLUGIN_API", "manifest.OLDEST_PLUGIN_API"}  # imported there
        for name, kind in committed["names"].items():
            if name not in constants and not kind.startswith("member"):
                assert name.rpartition(".")[2] in text, name
        assert "### fd_kernels" in text
        assert "- `open(index: int) -> DeviceInfo` (abstract)" in text

    def test_every_class_and_function_is_described(self, reference: dict[str, Any]) -> None:
        bare = [
            f"{module.__name__}.{name}"
            for module in reference["modules"]()
            for name, value in reference["members"](module)
            if (inspect.isclass(value) and not reference["own_doc"](value))
            or (inspect.isfunction(value) and not inspect.getdoc(value))
        ]
        assert bare == []

    def test_long_calls_are_broken_between_parameters(self, reference: dict[str, Any]) -> None:
        def long(first: dict[str, int], second: tuple[int, ...] = (), third: str = "x" * 60) -> None: ...

        lines = reference["call"]("long", long).splitlines()
        assert lines[:3] == ["long(", "    first: dict[str, int],", "    second: tuple[int, ...] = (),"]
