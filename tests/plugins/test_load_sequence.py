"""A plug-in that fails at any step is reported with who, want, have and fix, and breaks nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pluggy
import pytest

from fd_core.api import hookspecs
from fd_core.api.verdict import Reason, ReasonCode
from fd_core.host import plugins
from fd_core.host.find import Found, filtered, refuse_duplicates, unknown_names
from fd_core.host.plugins import Plugin, PluginHost
from fd_core.host.probe_cache import ProbeCache
from tests.plugins import broken
from tests.plugins.broken import Fake
from tests.plugins.conftest import Load


def only_reason(plugin: Plugin) -> Reason:
    assert len(plugin.verdict.reasons) == 1, plugin.verdict
    return plugin.verdict.reasons[0]


def assert_names_plugin(reason: Reason) -> None:
    """Every report says which distribution at which version, and what to do."""
    assert "1.2.3" in reason.subject
    assert reason.want
    assert reason.have
    assert reason.fix


def test_good_plugin_passes_every_step(load: Load) -> None:
    plugin = load(Fake("sound", broken.GOOD))
    assert plugin.verdict.ok, plugin.verdict
    assert [step.name for step in plugin.steps] == ["find", "manifest", "probe", "import", "binary"]
    assert plugin.facts()[0].name == "sound"
    assert plugin.facts()[0].devices == 1


FAULTS: list[Any] = [
    pytest.param(broken.RAISES, {}, ReasonCode.IMPORT, "libvendor.so.3", id="raises"),
    pytest.param(broken.EXITS, {}, ReasonCode.IMPORT, "SystemExit: 7", id="exits"),
    pytest.param(broken.SEGFAULTS, {}, ReasonCode.PROBE_CRASH, "SIGSEGV", id="segfaults"),
    pytest.param(broken.MISSPELT, {}, ReasonCode.REGISTER, "fd_plaforms", id="misspelt hook"),
    pytest.param(broken.WRONG_ARGUMENT, {}, ReasonCode.REGISTER, "devise", id="wrong hook argument"),
    pytest.param(broken.INCOMPLETE, {}, ReasonCode.REGISTER, "['open']", id="abstract platform"),
    pytest.param(broken.NO_DEVICE, {}, ReasonCode.NO_DEVICE, "0", id="no device"),
    pytest.param(
        broken.PROBE_RAISES, {}, ReasonCode.PROBE_ERROR, "driver 450 is too old", id="probe raises"
    ),
    pytest.param(broken.GOOD, None, ReasonCode.MANIFEST, "no file", id="no manifest"),
    pytest.param(broken.GOOD, {"colour": 1}, ReasonCode.MANIFEST, "colour", id="unknown manifest field"),
    pytest.param(
        broken.GOOD,
        {"api": {"min": [2, 0], "max": [2, 0]}},
        ReasonCode.API_TOO_NEW,
        "API 1.0",
        id="API too new",
    ),
    pytest.param(
        broken.GOOD,
        {"api": {"min": [0, 1], "max": [0, 9]}},
        ReasonCode.API_TOO_OLD,
        "API 1.0",
        id="API too old",
    ),
    pytest.param(
        broken.GOOD, {"ffi": {"min": "9.0", "below": "10"}}, ReasonCode.FFI, "0.1", id="FFI too old"
    ),
    pytest.param(broken.GOOD, {"os": ["plan9"]}, ReasonCode.OS, sys.platform, id="other system"),
    pytest.param(broken.GOOD, {"arch": ["vax"]}, ReasonCode.OS, "", id="other processor"),
    pytest.param(
        broken.STAMPED, {"stamp": {"digest": "manifest"}}, ReasonCode.ABI, "digest binary", id="wrong stamp"
    ),
    pytest.param(broken.GOOD, {"stamp": {"digest": "x"}}, ReasonCode.ABI, "no fd_stamp", id="no stamp"),
    pytest.param(
        broken.UNLOADABLE,
        {"stamp": {"digest": "x"}},
        ReasonCode.ABI,
        "undefined symbol",
        id="binary does not load",
    ),
    pytest.param(
        broken.CRASHING_BINARY,
        {"stamp": {"digest": "x"}},
        ReasonCode.PROBE_CRASH,
        "SIGSEGV",
        id="binary crashes",
    ),
]


@pytest.mark.parametrize(("code", "manifest", "expected", "have"), FAULTS)
def test_fault_is_reported(
    load: Load, code: str, manifest: dict[str, Any] | None, expected: ReasonCode, have: str
) -> None:
    plugin = load(Fake("faulty", code, manifest))
    reason = only_reason(plugin)
    assert reason.code is expected, reason
    assert have in reason.have
    assert reason.fix
    if expected not in (ReasonCode.NO_DEVICE, ReasonCode.PROBE_ERROR):
        assert_names_plugin(reason)
    assert not plugin.loaded
    fact = plugin.facts()[0]
    assert fact.name == "faulty"
    assert not fact.verdict.ok


STAMPS: list[Any] = [
    pytest.param(b'..FD_STAMP:{"digest": "1"}\0..', None, "", id="same build"),
    pytest.param(b'..FD_STAMP:{"digest": "2"}\0..', ReasonCode.ABI, "digest 2", id="other build"),
    pytest.param(b'..FD_STAMP:{"dig\0..', ReasonCode.ABI, "digest None", id="spoilt stamp"),
    pytest.param(b"no stamp", ReasonCode.ABI, "digest None", id="without a stamp"),
    pytest.param(b"", ReasonCode.ABI, "digest None", id="empty file"),
    pytest.param(None, ReasonCode.NOT_BUILT, "no file", id="no file"),
]


@pytest.mark.parametrize(("content", "expected", "have"), STAMPS)
def test_stamp_in_the_file_is_compared_before_anything_runs(
    load: Load, tmp_path: Path, content: bytes | None, expected: ReasonCode | None, have: str
) -> None:
    code = broken.STAMPED.replace('"binary"', '"1"')
    if content is not None:
        (tmp_path / "fd_sealed/lib").mkdir(parents=True)
        (tmp_path / "fd_sealed/lib/libkernels.so").write_bytes(content)
    plugin = load(Fake("sealed", code, {"stamp": {"digest": "1"}, "binaries": ["lib/*.so"]}))
    if expected is None:
        assert plugin.verdict.ok, plugin.verdict
        return
    assert only_reason(plugin).code is expected
    assert have in only_reason(plugin).have
    assert "fd_sealed" not in sys.modules


def test_hanging_plugin_is_ended_in_time(load: Load) -> None:
    started = time.perf_counter()
    reason = only_reason(load(Fake("hanging", broken.HANGS), timeout=1.5))
    assert reason.code is ReasonCode.PROBE_TIMEOUT
    assert "FD_PROBE_TIMEOUT" in reason.fix
    assert time.perf_counter() - started < 10


def test_misspelt_hook_names_the_nearest(load: Load) -> None:
    assert only_reason(load(Fake("typo", broken.MISSPELT))).fix == "rename fd_plaforms to fd_platforms"


def test_what_a_plugin_prints_does_not_spoil_the_probe(load: Load) -> None:
    assert load(Fake("chatty", broken.PRINTS)).verdict.ok


@pytest.mark.parametrize("manifest", [{"api": {"min": [2, 0], "max": [2, 0]}}, None])
def test_refused_manifest_means_no_code_runs(load: Load, tmp_path: Path, manifest: Any) -> None:
    witness = tmp_path / "witness"
    load(Fake("future", f"open({str(witness)!r}, 'w')", manifest))
    assert not witness.exists()
    assert "fd_future" not in sys.modules


def test_inline_probe_reports_the_same(load: Load) -> None:
    assert only_reason(load(Fake("inlined", broken.RAISES), inline=True)).code is ReasonCode.IMPORT


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Found("gone", "fd_gone", "fd-gone", "1.2.3")
    plugin = PluginHost([found], ProbeCache(None), False, 5).plugins[0]
    assert_names_plugin(only_reason(plugin))
    assert only_reason(plugin).code is ReasonCode.IMPORT


def test_hook_that_raises_later_is_recorded(load: Load, tmp_path: Path) -> None:
    code = broken.GOOD + "\n\n@hookimpl\ndef fd_kernels(device):\n    raise KeyError('table')\n"
    found = Fake("later", code).install(tmp_path)
    host = PluginHost([found], ProbeCache(None), True, 5)
    info = host.platform_class("later")().open(0)
    assert host.kernels(info) == []
    assert "KeyError" in host.plugins[0].verdict.reasons[0].have


def test_hook_that_returns_something_else_is_recorded(load: Load, tmp_path: Path) -> None:
    code = broken.GOOD + "\n\n@hookimpl\ndef fd_kernels(device):\n    return ['rms_norm']\n"
    host = PluginHost([Fake("strings", code).install(tmp_path)], ProbeCache(None), True, 5)
    assert host.kernels(host.platform_class("strings")().open(0)) == []
    assert "want a Kernel" in str(host.plugins[0].verdict)


# -- step 1 ------------------------------------------------------------------------------------------

A, B = Found("a", "fd_a", "fd-a", "1"), Found("b", "fd_b", "fd-b", "2")


def test_only_and_block_and_safe_mode() -> None:
    assert [f.verdict.ok for f in filtered([A, B], only=["a"])] == [True, False]
    assert [f.verdict.ok for f in filtered([A, B], block=["a"])] == [False, True]
    assert [f.verdict.ok for f in filtered([A, B], safe=True)] == [False, False]
    (reason,) = filtered([A], block=["a"])[0].verdict.reasons
    assert reason.code is ReasonCode.DISABLED
    assert "FD_PLUGINS_BLOCK=a" in reason.have


def test_unknown_plugin_name_is_an_error_with_the_nearest() -> None:
    found = Found("cpu", "fd_cpu", "fd-cpu", "1")
    assert "did you mean 'cpu'" in str(unknown_names([found], ["cpuu"], "FD_PLUGINS_ONLY"))
    assert unknown_names([found], ["cpu"], "FD_PLUGINS_ONLY").ok


def test_a_name_taken_twice_is_refused_on_both() -> None:
    rows = refuse_duplicates([A, Found("a", "other", "other", "3"), B])
    assert [row.verdict.ok for row in rows] == [False, False, True]
    assert "fd-a 1, other 3" in rows[0].verdict.reasons[0].have


# -- whole processes ---------------------------------------------------------------------------------


def python(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the fakes in `folder` installed."""
    paths = [str(folder), *(path for path in sys.path if path)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FD_")}
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, *words]
    return subprocess.run(
        command, env={**environment, **variables}, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "code", [broken.RAISES, broken.HANGS, broken.SEGFAULTS], ids=["raise", "hang", "segv"]
)
def test_named_platform_that_fails_ends_the_program(tmp_path: Path, code: str) -> None:
    Fake("hurt", code).install(tmp_path)
    settings = {"FD_PLATFORM": "hurt", "FD_PLUGINS_ONLY": "hurt", "FD_PROBE_TIMEOUT": "2"}
    done = python(tmp_path, "-m", "fd_core", "matrix", "--op", "rms_norm", "--platform", "hurt", **settings)
    assert done.returncode == 1
    assert "fd-hurt 1.2.3" in done.stderr
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_plugin_leaves_core_usable_and_is_announced(tmp_path: Path) -> None:
    Fake("hurt", broken.SEGFAULTS).install(tmp_path)
    code = "import fd_core; print(fd_core.current_platform.name)"
    done = python(tmp_path, "-c", code, FD_PLUGINS_ONLY="hurt")
    assert done.stdout.strip() == "reference", done.stderr
    assert "PROBE_CRASH" in done.stderr
    assert "fd-hurt 1.2.3" in done.stderr


def test_safe_mode_imports_no_plugin(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    Fake("eager", f"open({str(witness)!r}, 'w')").install(tmp_path)
    done = python(tmp_path, "-c", "import fd_core; print(fd_core.current_platform.name)", FD_SAFE_MODE="1")
    assert done.stdout.strip() == "reference", done.stderr
    assert not witness.exists()


def test_doctor_reports_a_broken_plugin_and_says_so_in_its_status(tmp_path: Path) -> None:
    Fake("hurt", broken.RAISES).install(tmp_path)
    done = python(tmp_path, "-m", "fd_core", "doctor", FD_PLUGINS_ONLY="hurt")
    assert done.returncode == 1
    assert "BROKEN" in done.stdout
    assert "libvendor.so.3" in done.stdout


def test_twenty_plugins_are_found_and_checked_in_50_ms(tmp_path: Path) -> None:
    """Metadata and manifests; imports of the standard tools and everybody else's packages not counted."""
    for number in range(20):
        Fake(f"many{number:02}", broken.GOOD).install(tmp_path)
    code = """
import sys, time
from fd_core.host.check import check
from fd_core.host.find import installed
first = installed()
check(first[0])
sys.path = [sys.argv[1]]
started = time.perf_counter()
found = installed()
assert len(found) == 20, found
assert all(check(one)[1].ok for one in found)
print((time.perf_counter() - started) * 1e3)
"""
    taken = min(float(python(tmp_path, "-c", code, str(tmp_path)).stdout) for _ in range(3))
    assert taken < 50


def test_a_deprecated_hook_works_and_is_reported(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = pluggy.HookspecMarker(hookspecs.PROJECT)

    class Specs:
        @marker(warn_on_impl=DeprecationWarning("fd_platforms goes with plug-in API 2; use fd_devices"))
        def fd_platforms(self) -> None: ...

    def manager() -> pluggy.PluginManager:
        made = pluggy.PluginManager(hookspecs.PROJECT)
        made.add_hookspecs(Specs())
        return made

    monkeypatch.setattr(plugins, "new_manager", manager)
    plugin = load(Fake("dated", broken.GOOD))
    assert plugin.verdict.ok, plugin.verdict
    assert plugin.deprecations == ["fd_platforms goes with plug-in API 2; use fd_devices"]
