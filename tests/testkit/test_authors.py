"""The kit as an author's test module, its timings, and its model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fd_core.api.dtype import dtype
from fd_core.cli import main
from fd_core.host.freeze import freeze
from fd_core.host.session import Session, open_session
from fd_core.ops.catalogue import catalogue
from fd_core.testkit import conformance
from fd_core.testkit.bench import Timing, shares, summary, table, timings
from fd_core.testkit.ceilings import Ceilings, measure
from fd_core.testkit.kit import CHECKS
from fd_core.testkit.model_checks import examine_model

globals().update(conformance("reference", ops=["silu"], dtypes=["float32"]))


@pytest.fixture(scope="module")
def reference() -> Session:
    return open_session("reference")


def test_generated_names() -> None:
    made = conformance("reference", ops=["silu"], model=False)
    assert set(made) == {"fd_run", "test_op"}
    marks = {mark.args[0]: list(mark.args[1]) for mark in made["test_op"].pytestmark}
    assert marks == {"op": ["silu"], "check": list(CHECKS)}


class TestModel:
    def test_oracles_agree_with_themselves(self, reference: Session) -> None:
        assert {f.status for f in examine_model(reference, ["float32"])} == {"pass"}

    def test_wrong_kernel_is_noticed(self, reference: Session) -> None:
        """One op off by a few percent: no op check is run here, the model must notice."""
        ops = freeze(catalogue(), [], reference.device, policy="error", oracle_is_native=True)
        right = ops.table["rms_norm"].target

        def wrong(x: Any, weight: Any, eps: float, out: Any) -> None:
            right(x, weight, eps, out)
            out.numpy()[...] *= 1 + 0.03 * (x.numpy() > 0)

        ops.table["rms_norm"].target = wrong
        parts = (reference.platform, reference.device, ops, reference.attention_backends)
        mine = Session(*parts, reference.quant_methods, reference.ledger)
        found = {f.check: f.status for f in examine_model(mine, ["float32"])}
        assert found["logits_of_a_prompt"] == found["logits_of_chunks_and_batches"] == "fail"

    def test_model_that_cannot_be_built_is_a_finding(self, reference: Session) -> None:
        parts = (reference.platform, reference.device, reference.ops, [], {})
        found = list(examine_model(Session(*parts, reference.ledger), ["float32"]))
        assert [(f.check, f.status) for f in found] == [("build", "fail")]


class TestBench:
    def test_timings(self, reference: Session) -> None:
        rows = list(timings(reference, ["rms_norm"], ["float32"], against="oracle"))
        assert {row.case for row in rows} == {"1x1024", "512x1024", "64x8192"}
        assert all(row.microseconds > 0 and row.bytes_per_second > 0 and row.ratio > 0 for row in rows)
        assert "rms_norm" in table(rows)

    def test_bytes_follow_the_element_size(self) -> None:
        case = next(case for case in catalogue()["rms_norm"].cases if case.id == "512x1024")
        assert [case.bytes_of(dtype(name)) for name in ("float32", "bfloat16")] == [4 << 20, 2 << 20]
        assert all(isinstance(case.bytes_of(t), int) for one in catalogue().values()
                   for case in one.cases for t in case.dtypes)  # fmt: skip

    def test_summary_is_the_median(self) -> None:
        values = iter([1.0, *[2.0, 4.0, 3.0] * 20])
        median, spread, count = summary(lambda calls: next(values))
        assert median == 3e6
        assert 0 < spread < 1
        assert count > 3

    def test_rates_need_the_case_to_state_them(self) -> None:
        row = Timing("op", "case", "float32", "p", 2.0, 0.0, 3)
        assert " - " in table([row])

    def test_shares_are_of_the_device_s_own_ceilings(self, reference: Session) -> None:
        assert shares(Ceilings(100.0, 50.0), 25.0, 40.0) == (0.25, 0.8)
        assert shares(Ceilings(100.0, 0.0), 25.0, 40.0) == (0.25, 0.0)
        found = measure(reference)
        assert found.bytes_per_second > 1e7
        assert found.flops_per_second == 0  # the reference platform has oracles alone

    def test_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "report.json"
        words = ["conformance", "--platform", "reference", "--op", "swiglu", "--dtype", "float32"]
        assert main.main([*words, "--bench", "--json", str(file)]) == 0
        assert {row["op"] for row in json.loads(file.read_text())["timings"]} == {"swiglu"}
        assert main.main([*words, "--bench", "--against", "fd-none"]) == 1
        assert "want a provider of swiglu (oracle), have 'fd-none'" in capsys.readouterr().err


def test_report_file(tmp_path: Path) -> None:
    module, file = tmp_path / "test_mine.py", tmp_path / "report.json"
    module.write_text(
        "from fd_core.testkit import conformance\n"
        "globals().update(conformance('reference', ops=['silu'], dtypes=['float32'], model=False))\n"
    )
    plugin = ["-p", "fd_core.testkit.pytest_plugin", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *plugin, str(module), "--fd-report", str(file)]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # named above, installed or not
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    data = json.loads(file.read_text())
    assert data["platform"] == "reference"
    assert {finding["op"] for finding in data["findings"]} == {"silu"}
