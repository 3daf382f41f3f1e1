"""Probes are remembered only while nothing they depend on has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fd_core.api.verdict import ReasonCode, Verdict
from fd_core.host.find import Found
from fd_core.host.plugins import PluginHost
from fd_core.host.probe import Probed, ProbeResult, from_json
from fd_core.host.probe_cache import ProbeCache, boot_id, cache_folder, key
from tests.plugins import broken
from tests.plugins.broken import Fake

FOUND = Found("toy", "fd_toy", "fd-toy", "1.0")
RESULT = ProbeResult((Probed("toy", "cpu", 5, ({"name": "x"},), Verdict()),))
NO = Verdict.no(ReasonCode.DRIVER, "toy", "a", "b", "c")


def test_json_round_trip() -> None:
    for result in (RESULT, ProbeResult((Probed("toy", "cpu", 5, (), NO),)), ProbeResult(verdict=NO)):
        assert from_json(result.json()) == result


def test_remembers_devices_and_forgets_failures(tmp_path: Path) -> None:
    cache = ProbeCache(tmp_path)
    cache.put("good", RESULT)
    cache.put("bad", ProbeResult(verdict=NO))
    assert cache.get("good") == RESULT
    assert cache.get("bad") is None


def test_key_depends_on_version_files_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fd_plugin.json").write_text("{}")
    first = key(FOUND, tmp_path, ["VENDOR_DEVICES"])
    assert key(FOUND, tmp_path, ["VENDOR_DEVICES"]) == first
    assert key(Found("toy", "fd_toy", "fd-toy", "1.1"), tmp_path, ["VENDOR_DEVICES"]) != first
    monkeypatch.setenv("VENDOR_DEVICES", "0")
    assert key(FOUND, tmp_path, ["VENDOR_DEVICES"]) != first
    monkeypatch.delenv("VENDOR_DEVICES")
    os.utime(tmp_path / "fd_plugin.json", (1, 1))
    assert key(FOUND, tmp_path, ["VENDOR_DEVICES"]) != first


@pytest.mark.parametrize("text", ["", "[]", '{"platforms": 3}', "\x00"])
def test_spoilt_file_is_ignored(tmp_path: Path, text: str) -> None:
    cache = ProbeCache(tmp_path)
    cache.put("k", RESULT)
    (tmp_path / "probe" / "k.json").write_text(text)
    assert cache.get("k") is None


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    cache = ProbeCache(blocked)
    cache.put("k", RESULT)
    assert cache.get("k") is None
    assert ProbeCache(None).get("k") is None


def test_where_it_lies() -> None:
    assert cache_folder({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/fd-core")
    assert cache_folder({"XDG_CACHE_HOME": "relative", "HOME": "/h"}) == Path("/h/.cache/fd-core")
    assert cache_folder({}) is None
    assert boot_id(Path("/no/such/file")) == ""


def test_second_start_probes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    counter = tmp_path / "probes"
    code = broken.GOOD.replace(
        "        return ProbeReport",
        f"        open({str(counter)!r}, 'a').write('x')\n        return ProbeReport",
    )
    found = Fake("counted", code).install(tmp_path)
    for _ in range(2):
        host = PluginHost([found], ProbeCache(tmp_path / "cache"), False, 20)
        assert host.plugins[0].verdict.ok, host.plugins[0].verdict
    assert counter.read_text() == "x"
