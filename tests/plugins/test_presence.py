"""Where nothing of a device is there, the manifest says so, and no process is started to find out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fd_core.api.manifest import Presence
from fd_core.api.verdict import Reason, ReasonCode
from fd_core.host import presence as presences
from fd_core.host import probe as probing
from fd_core.host.plugins import PluginHost
from fd_core.host.presence import check_presence
from fd_core.host.probe_cache import ProbeCache
from fd_core.host.select import choose
from fd_core.host.session import announce
from tests.plugins import broken
from tests.plugins.broken import Fake

WORDS = {"subject": "toy", "want": "a toy", "have": "none", "fix": "buy one"}
TOY = Presence(
    paths=("/dev/toy*", "/dev/doll"), libraries=("libtoy.so.1",), unless=("TOY_ABROAD",), **WORDS
)
NONE = Reason(ReasonCode.NO_DEVICE, **WORDS)


def put(file: Path, content: bytes = b"") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def test_neither_file_nor_library(tmp_path: Path) -> None:
    put(tmp_path / "etc/ld.so.cache", b"glibc-ld.so.cache1.1\0libtoy.so.12\0/usr/lib/libtoy.so.12\0")
    assert check_presence(TOY, tmp_path, {"LD_LIBRARY_PATH": str(tmp_path / "opt")}).reasons == (NONE,)


@pytest.mark.parametrize("node", ["dev/toy0", "dev/toyctl", "dev/doll"])
def test_a_device_node_calls_for_the_probe(tmp_path: Path, node: str) -> None:
    put(tmp_path / node)
    assert check_presence(TOY, tmp_path, {}).ok


@pytest.mark.parametrize(
    "folder", ["lib", "usr/lib64", "usr/local/lib", "usr/lib/aarch64-linux-gnu", "opt/toy"]
)
def test_a_library_in_a_folder_of_the_loader(tmp_path: Path, folder: str) -> None:
    put(tmp_path / folder / "libtoy.so.1")
    variables = {"LD_LIBRARY_PATH": f"/nowhere:{tmp_path / 'opt/toy'}"}
    assert check_presence(TOY, tmp_path, variables).ok


def test_a_library_in_the_loaders_cache(tmp_path: Path) -> None:
    put(tmp_path / "etc/ld.so.cache", b"glibc-ld.so.cache1.1\0libtoy.so.1\0/opt/toy/libtoy.so.1\0")
    assert check_presence(TOY, tmp_path, {}).ok


def test_what_is_not_known_is_left_to_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_presence(None, tmp_path, {}).ok
    assert check_presence(TOY, tmp_path, {"TOY_ABROAD": "1"}).ok
    monkeypatch.setattr(presences.sys, "platform", "plan9")
    assert check_presence(TOY, tmp_path, {}).ok


def test_the_loader_agrees_about_this_machine() -> None:
    """The library that is loaded for the interpreter itself, and one that nobody has."""
    assert presences.can_load("libc.so.6", Path("/"), {})
    assert not presences.can_load("libno_such_thing.so.1", Path("/"), {})


Start = Callable[..., PluginHost]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """The start of a host with one plug-in whose devices come with `tmp_path`/dev/toy*."""
    monkeypatch.syspath_prepend(str(tmp_path))
    code = f"open({str(tmp_path / 'imports')!r}, 'a').write('x')\n" + broken.GOOD
    code += "\n\n@hookimpl\ndef fd_simulated_devices():\n    return [('toy', Toy().open(0))]\n"
    presence = {"paths": [str(tmp_path / "dev/toy*")], **WORDS}
    found = Fake("toy", code, {"presence": presence}).install(tmp_path)
    yield lambda inline=False: PluginHost([found], ProbeCache(tmp_path / "cache"), inline, 20)
    sys.modules.pop(found.module, None)


def imports(tmp_path: Path) -> int:
    return len((tmp_path / "imports").read_text()) if (tmp_path / "imports").exists() else 0


def test_no_process_is_started_and_the_reason_is_told(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        pytest.fail("probed")

    monkeypatch.setattr(probing, "probe_in_subprocess", refuse)
    host = start()
    assert host.plugins[0].verdict.reasons == (NONE,)
    assert imports(tmp_path) == 0
    announce(choose(host.facts()))
    assert (
        "platform toy (fd-toy 1.2.3) is not used: [NO_DEVICE] toy: want a toy, have none; fix"
        in caplog.text
    )


def test_with_a_device_node_it_is_probed(start: Start, tmp_path: Path) -> None:
    put(tmp_path / "dev/toy0")
    host = start()
    assert host.plugins[0].loaded
    assert not host.plugins[0].spared


def test_a_remembered_device_whose_node_is_gone(start: Start, tmp_path: Path) -> None:
    put(tmp_path / "dev/toy0")
    assert start().plugins[0].verdict.ok
    (tmp_path / "dev/toy0").unlink()
    assert start().plugins[0].verdict.reasons == (NONE,)


def test_a_probe_in_this_process_is_always_made(start: Start) -> None:
    assert start(inline=True).plugins[0].verdict.ok


def test_described_devices_are_asked_for_after_a_probe(start: Start, tmp_path: Path) -> None:
    """Reports about other machines load the plug-in: not before it has survived that in its own process."""
    host = start()
    assert [name for name, _ in host.simulated_devices()] == ["toy"]
    assert imports(tmp_path) == 2
    assert host.plugins[0].verdict.reasons == (NONE,)


def test_a_plugin_that_crashes_in_its_probe_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It could not say how much better than the platform in use it is."""
    monkeypatch.syspath_prepend(str(tmp_path))
    found = [
        Fake(name, code).install(tmp_path)
        for name, code in (("able", broken.GOOD), ("zoo", broken.SEGFAULTS))
    ]
    host = PluginHost(found, ProbeCache(None), False, 20)
    choice = choose(host.facts())
    announce(choice)
    assert choice.name == "able"
    assert "platform zoo (fd-zoo 1.2.3) is not used: [PROBE_CRASH]" in caplog.text
