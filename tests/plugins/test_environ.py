"""The environment registry: types, refusals, near matches, and the table in the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fd_core.environ import CORE, Registry, Variable, VariableError, read

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("text", "abc", "abc"),
        ("integer", "12", 12),
        ("number", "0.5", 0.5),
        ("switch", "on", True),
        ("switch", "0", False),
        ("names", "a, b,,c ", ("a", "b", "c")),
        ("path", "/tmp/x", "/tmp/x"),
    ],
)
def test_values_have_types(kind: str, text: str, value: object) -> None:
    assert read(Variable("FD_X", "", kind), {"FD_X": text}) == value


def test_unset_and_empty_are_the_default() -> None:
    variable = Variable("FD_X", "", "integer", "7")
    assert read(variable, {}) == read(variable, {"FD_X": " "}) == 7
    assert read(Variable("FD_X", ""), {}) is None
    assert read(Variable("FD_X", "", "names"), {}) == ()


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        (
            Variable("FD_X", "", "integer"),
            "two",
            r"FD_X \(fd-core\): want an integer, have 'two'; fix: unset it",
        ),
        (
            Variable("FD_X", "", "switch", "0"),
            "maybe",
            "want 1 or 0, have 'maybe'; fix: unset it or write '0'",
        ),
        (Variable("FD_X", "", choices=("a", "b")), "c", "want one of a, b, have 'c'"),
        (Variable("FD_X", "", "integer", minimum=1), "0", "want at least 1, have '0'"),
    ],
)
def test_wrong_values_are_refused(variable: Variable, text: str, message: str) -> None:
    with pytest.raises(VariableError, match=message):
        read(variable, {"FD_X": text})


def test_unknown_names_get_the_nearest() -> None:
    unknown = Registry(CORE).unknown(
        {"FD_PLATFROM": "cpu", "FD_PLATFORM": "cpu", "HOME": "/", "FD_ZZZZZZ": "1"}
    )
    assert unknown == [
        "unknown environment variable FD_PLATFROM; did you mean FD_PLATFORM?",
        "unknown environment variable FD_ZZZZZZ",
    ]


def test_undeclared_name_is_a_mistake_in_our_code() -> None:
    with pytest.raises(KeyError, match="FD_PLATFROM is not declared; did you mean FD_PLATFORM"):
        Registry(CORE).value("FD_PLATFROM", {})


def test_one_owner_each() -> None:
    registry = Registry([Variable("FD_X", "")])
    registry.declare([Variable("FD_X", "")])
    with pytest.raises(ValueError, match="FD_X has two owners: fd-core and fd-y"):
        registry.declare([Variable("FD_X", "", owner="fd-y")])


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="want a kind of"):
        Variable("FD_X", "", "colour")


def test_documented_table_is_the_registry() -> None:
    """docs/environment.md is `python -m fd_core.environ`, with the variables of fd-cpu."""
    text = (ROOT / "docs/environment.md").read_text(encoding="utf-8")
    registry = Registry(CORE)
    variables = pytest.importorskip("fd_cpu.variables", reason="fd-cpu is not installed").VARIABLES
    registry.declare(Variable(**row, owner="fd-cpu") for row in variables)
    assert registry.markdown() in text
