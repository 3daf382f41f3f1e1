"""The catalogue as a whole: one name everywhere, documented, and the published list is the real one."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from fd_core.ops.catalogue import catalogue, find
from fd_core.ops.schema import OpDef

ROOT = Path(__file__).parents[2]


def test_published_ops_are_those_of_the_catalogue() -> None:
    written = runpy.run_path(str(ROOT / "tools/docs/write_ops.py"))["text"]()
    assert (ROOT / "docs/ops.md").read_text(encoding="utf-8") == written, "run tools/docs/write_ops.py"


@pytest.mark.parametrize("definition", catalogue().values(), ids=catalogue())
def test_an_op_is_complete(definition: OpDef) -> None:
    assert definition.spec.name == definition.name
    assert len(definition.spec.doc) > 100, "a contract has shapes, dtypes, errors and a source"
    assert definition.cases
    assert len({case.id for case in definition.cases}) == len(definition.cases)
    assert all(param.name for param in definition.spec.params)
    assert definition.tolerance.because


def test_an_unknown_op_names_its_neighbours() -> None:
    with pytest.raises(KeyError, match="rms_norm"):
        find("rmsnorm")
