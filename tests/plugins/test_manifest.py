"""The static manifest: what is read before anything is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fd_core.api.manifest import Manifest, check_manifest, numbers, read_manifest
from fd_core.api.verdict import ReasonCode, Verdict

BASE: dict[str, Any] = {"name": "fd-toy", "version": "1.0", "api": {"min": [1, 0], "max": [1, 2]}}
HOST: dict[str, Any] = {
    "system": "linux",
    "machine": "x86_64",
    "ffi": "0.1.15.post2",
    "api": (1, 1),
    "oldest": (1, 0),
}


def check(host: dict[str, Any] | None = None, **fields: Any) -> Verdict:
    return check_manifest(Manifest(**{**BASE, **fields}), "fd-toy", **{**HOST, **(host or {})})


def test_accepted() -> None:
    assert check(ffi={"min": "0.1.15", "below": "0.2"}, os=["linux"], arch=["x86_64"]).ok


@pytest.mark.parametrize(
    ("api", "host", "code"),
    [
        ({"min": [1, 2], "max": [1, 2]}, {}, ReasonCode.API_TOO_NEW),
        ({"min": [2, 0], "max": [2, 0]}, {}, ReasonCode.API_TOO_NEW),
        ({"min": [1, 0], "max": [1, 4]}, {"api": (3, 0), "oldest": (2, 0)}, ReasonCode.API_TOO_OLD),
    ],
)
def test_api_range_works_both_ways(api: Any, host: dict[str, Any], code: ReasonCode) -> None:
    (reason,) = check(host, api=api).reasons
    assert reason.code is code
    assert "upgrade" in reason.fix


def test_previous_major_is_accepted_while_core_supports_it() -> None:
    assert check({"api": (2, 0), "oldest": (1, 0)}).ok


@pytest.mark.parametrize(
    ("have", "ok"), [("0.1.15", True), ("0.1.14", False), ("0.2.0", False), ("", False)]
)
def test_ffi_range(have: str, ok: bool) -> None:
    verdict = check({"ffi": have}, ffi={"min": "0.1.15", "below": "0.2"})
    assert verdict.ok is ok
    assert ok or 'pip install "apache-tvm-ffi>=0.1.15,<0.2"' in verdict.reasons[0].fix


def test_every_reason_is_reported_at_once() -> None:
    verdict = check(api={"min": [9, 0], "max": [9, 0]}, os=["plan9"], arch=["vax"])
    assert [r.code for r in verdict.reasons] == [ReasonCode.API_TOO_NEW, ReasonCode.OS, ReasonCode.OS]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "Fd Toy"}, "name"),
        ({"api": {"min": [1], "max": [1, 0]}}, "api.min"),
        ({"colour": "red"}, "colour"),
        ({"environment": [{"name": "FD_X", "doc": ""}] * 2}, "FD_X"),
    ],
)
def test_wrong_manifest_names_file_and_field(tmp_path: Path, fields: dict[str, Any], text: str) -> None:
    file = tmp_path / "fd_plugin.json"
    file.write_text(json.dumps({**BASE, **fields}))
    with pytest.raises(ValueError, match=text) as caught:
        read_manifest(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": 1}'])
def test_garbage_is_a_value_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "fd_plugin.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=str(file)):
        read_manifest(file)


def test_numbers_of_a_version() -> None:
    assert numbers("0.1.15.post2") == (0, 1, 15)
    assert numbers("0.2rc1") == (0, 2)
    assert numbers("") == ()
