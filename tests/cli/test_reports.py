"""`fd doctor`, `fd why`, `fd matrix`: what they say, as text and as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fd_core import __version__
from fd_core.api.verdict import ReasonCode
from fd_core.cli import doctor, main, matrix, why
from fd_core.host.plugins import plugin_host
from fd_core.ops.catalogue import catalogue


@pytest.fixture(autouse=True)
def _reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform that is the same everywhere."""
    monkeypatch.setenv("FD_PLATFORM", "reference")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = main.main(words)
    captured = capsys.readouterr()
    return status, captured.out or captured.err


class TestDoctor:
    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, text = run(capsys, "doctor", "--json")
        report = json.loads(text)
        assert report["fd_core"] == __version__
        assert report["device"]["platform"] == "reference"
        assert report["environment"]["set"]["FD_PLATFORM"] == "reference"
        assert all({"name", "distribution", "steps", "broken"} <= set(row) for row in report["plugins"])
        assert "numpy" in report["dependencies"]

    def test_text_names_platforms_and_the_device(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, text = run(capsys, "doctor")
        assert "reference (fd-core), priority -1000: 1 device(s)" in text
        assert "NumPy oracles on the host" in text

    def test_unknown_variable_and_missing_platform(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FD_PLATFROM", "x")
        monkeypatch.setenv("FD_PLATFORM", "gpu7")
        status, text = run(capsys, "doctor")
        assert status == 1
        assert "unknown environment variable FD_PLATFROM; did you mean FD_PLATFORM?" in text
        assert "[NOT_INSTALLED] platform: want one of" in text

    def test_secrets_are_not_shown(self) -> None:
        assert doctor.is_secret("FD_API_KEY")
        assert not doctor.is_secret("FD_PLATFORM")


class TestWhy:
    def test_oracle_platform(self, capsys: pytest.CaptureFixture[str]) -> None:
        status, text = run(capsys, "why", "rms_norm", "--dtype", "bfloat16", "--shape", "4,64")
        assert status == 0
        assert "x=bfloat16[4, 64]" in text
        assert f"oracle       {__version__}    SELECTED  priority -1000" in text

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, text = run(capsys, "why", "rms_norm", "--json")
        report = json.loads(text)
        assert (report["op"], report["served_by"], report["fallback"]) == ("rms_norm", "oracle", False)
        assert report["kernels"][-1]["selected"]

    def test_rejected_kernel_shows_want_have_and_code(self) -> None:
        reason = {
            "code": "DTYPE",
            "subject": "rms_norm.x",
            "want": "float16",
            "have": "float32",
            "fix": "cast",
        }
        assert why.reason_text(reason) == "[DTYPE] rms_norm.x: want float16, have float32; fix: cast"

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["rms_nrm"], "no op is called 'rms_nrm'; nearest: rms_norm"),
            (["rms_norm", "--dtype", "int8"], "its contract has no int8; its dtypes are float32"),
            (["rms_norm", "--dtype", "float31"], "unknown dtype 'float31'"),
            (["rms_norm", "--shape", "z=1,2"], "rms_norm has no tensor 'z'; it has x, weight, out"),
            (["rms_norm", "--shape", "a,b"], "want NAME=N,N,..., have 'a,b'"),
        ],
    )
    def test_wrong_question(self, capsys: pytest.CaptureFixture[str], words: list[str], text: str) -> None:
        status, said = run(capsys, "why", *words)
        assert status == 1
        assert text in said


@pytest.fixture(scope="module")
def report() -> matrix.Matrix:
    return matrix.build(plugin_host(), ["reference"])


class TestMatrix:
    def test_every_op_and_dtype_has_a_cell(self, report: matrix.Matrix) -> None:
        want = {(op.name, str(t)) for op in catalogue().values() for case in op.cases for t in case.dtypes}
        assert {(cell.op, cell.dtype) for cell in report.cells} == want
        assert {cell.served for cell in report.cells} == {"kernel"}

    def test_json_round_trip_and_schema(
        self, report: matrix.Matrix, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert matrix.Matrix.model_validate_json(report.model_dump_json()) == report
        _, text = run(capsys, "matrix", "--schema")
        schema = json.loads(text)
        assert set(schema["required"]) == {"schema_version", "fd_core", "plugins", "cells"}
        _, text = run(capsys, "matrix", "--json", "--op", "rms_norm", "--platform", "reference")
        check_schema(schema, schema, json.loads(text))

    def test_text(self, report: matrix.Matrix) -> None:
        assert "rms_norm" in matrix.text(report)

    def test_codes_are_those_of_the_plugin_api(self) -> None:
        everything = matrix.build(plugin_host())
        codes = {r.code for cell in everything.cells for other in cell.others for r in other.reasons}
        assert codes <= {code.value for code in ReasonCode}


def check_schema(root: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """The part of JSON Schema that the report uses."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    assert isinstance(value, kinds[schema["type"]]), (schema, value)
    assert value in schema.get("enum", [value])
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= set(value)
        for name, item in value.items():
            inner = schema["properties"][name] if "properties" in schema else schema["additionalProperties"]
            check_schema(root, inner, item)
    if isinstance(value, list):
        for item in value:
            check_schema(root, schema["items"], item)
