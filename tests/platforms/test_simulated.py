"""Devices that are not there: what reports say of them, how a failing one is reported and caught."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fd_core.api.dtype import float32
from fd_core.api.platform import DeviceError
from fd_core.api.tensor import TensorSpec
from fd_core.cli import main
from fd_core.host.errors import FdError, PlatformError
from fd_core.host.freeze import freeze
from fd_core.host.ledger import Ledger
from fd_core.host.plugins import PluginHost, plugin_host
from fd_core.host.probe_cache import ProbeCache
from fd_core.host.session import Session
from fd_core.host.simulate import Wanted, parse, simulated
from fd_core.ops.catalogue import catalogue
from fd_core.testkit import faults
from fd_core.testkit.kit import examine
from fd_core.testkit.simulated import SimulatedPlatform, kernel
from tests.plugins import broken
from tests.plugins.broken import Fake

LADDER = """

from fd_core.api.kernel import Kernel, Require


@hookimpl
def fd_simulated_devices():
    rows = [("v1", 1), ("v2", 2)]
    return [("{name}", DeviceInfo(HOST, "typical", arch, rank, 1 << 30)) for arch, rank in rows]


@hookimpl
def fd_kernels(device):
    assert device.arch in ("v1", "v2", "toy")
    needs = Require(arch=(2, None), arch_name="v2 or newer")
    return [Kernel("rms_norm", "fd-{name}", "fd_{name}_none:rms_norm", needs)]
"""
Install = Callable[[str], PluginHost]


@pytest.fixture
def install(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A host with one plug-in of this code."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(code: str) -> PluginHost:
        found = Fake("ladder", code).install(tmp_path)
        return PluginHost([found], ProbeCache(None), False, 20)

    return run


class TestText:
    def test_forms(self) -> None:
        assert parse("cpu:avx2") == Wanted("cpu", "avx2")
        assert parse("x:v1, 16GiB") == Wanted("x", "v1", 16 << 30)

    @pytest.mark.parametrize(
        "text", ["cpu", ":avx2", "cpu:", "cpu:avx2,", "cpu:avx2,16", "cpu:avx2,1.5GiB"]
    )
    def test_unreadable(self, text: str) -> None:
        with pytest.raises(PlatformError, match=r"\[POLICY\] FD_SIM: want NAME:ARCH or NAME:ARCH,16GiB"):
            parse(text)


class TestDescribed:
    def test_without_the_device(self, install: Install) -> None:
        """The probe finds nothing, so the plug-in is out, and still tells of its architectures."""
        host = install(broken.NO_DEVICE + LADDER)
        assert not host.plugins[0].loaded
        name, info = simulated(host, "ladder:v1,2GiB")
        assert (name, info.arch, info.memory) == ("ladder", "v1", 2 << 30)
        assert info.name == "typical (simulated)"
        assert simulated(host, "ladder:v1,2GiB") == (name, info)  # asked again
        reason = host.kernels(info)[0].requires.check_device("rms_norm", info).reasons[0]
        assert (reason.code.value, reason.want, reason.have) == ("ARCH", "v2 or newer", "v1")
        assert not host.plugins[0].loaded

    def test_unknown_names(self, install: Install) -> None:
        host = install(broken.GOOD + LADDER)
        with pytest.raises(PlatformError, match=r"\[ARCH\].*one of v1, v2, have 'v22'; fix: did you mean"):
            simulated(host, "ladder:v22")
        with pytest.raises(PlatformError, match=r"\[NOT_INSTALLED\].*'lader'.*did you mean 'ladder'"):
            simulated(host, "lader:v1")

    def test_crashing_plugin_is_not_imported(self, install: Install) -> None:
        host = install(broken.SEGFAULTS)
        assert host.simulated_devices() == []


class TestReports:
    @pytest.fixture(autouse=True)
    def _described(self) -> None:
        if not any(name == "cpu" for name, _ in plugin_host().simulated_devices()):
            pytest.skip("fd-cpu is not installed")

    def test_matrix(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["matrix", "--sim", "cpu:base", "--sim", "cpu:neon,4GiB", "--op", "rms_norm", "--json"]
        assert main.main(words) == 0
        cells = json.loads(capsys.readouterr().out)["cells"]
        assert {(cell["platform"], cell["arch"]) for cell in cells} == {("cpu", "base"), ("cpu", "neon")}

    def test_why_by_environment(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FD_SIM", "cpu:avx2")
        main.main(["why", "rms_norm", "--json"])
        device = json.loads(capsys.readouterr().out)["device"]
        assert (device["arch"], device["name"]) == ("avx2", "x86_64 processor (simulated)")

    def test_unknown_architecture(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main(["why", "rms_norm", "--sim", "cpu:avx3"]) == 1
        assert "have 'avx3'; fix: did you mean 'avx" in capsys.readouterr().err


def session(text: str = "") -> Session:
    platform = SimulatedPlatform(faults.parse(tuple(text.split(",")) if text else ()))
    info = platform.open(0)
    table = freeze(catalogue(), [kernel(one) for one in catalogue().values()], info, policy="error")
    return Session(platform, info, table, [], {}, Ledger(table, {}))


def norm(opened: Session) -> Any:
    """One call; the result is not waited for."""
    x, weight = (opened.platform.from_host(np.ones(shape, np.float32)) for shape in ((2, 4), (4,)))
    out = opened.platform.empty(TensorSpec((2, 4), float32))
    opened.ops.rms_norm(x, weight, 1e-6, out)
    return out


class TestFaults:
    def test_none(self) -> None:
        opened = session()
        np.testing.assert_allclose(opened.platform.to_host(norm(opened)), 1, rtol=1e-5)
        assert opened.platform.memory().used < 1 << 10

    def test_out_of_memory(self) -> None:
        opened = session("oom:3")
        with pytest.raises(
            MemoryError, match=r"platform 'simulated': want 32 bytes, have 0 free; fix: use a smaller"
        ):
            norm(opened)

    def test_asynchronous_error_surfaces_at_the_wait(self) -> None:
        opened = session("async:2")
        norm(opened)
        opened.platform.synchronize()
        norm_again = opened.ops.rms_norm
        x = opened.platform.from_host(np.ones((1, 4), np.float32))
        norm_again(x, opened.platform.from_host(np.ones(4, np.float32)), 1e-6, x)
        with pytest.raises(DeviceError, match=r"'simulated': want a working device, have kernel call 2"):
            opened.platform.synchronize()
        with pytest.raises(DeviceError):
            opened.platform.to_host(x)

    def test_lost_device(self) -> None:
        opened = session("lost:1")
        with pytest.raises(
            DeviceError, match=r"have no device since kernel call 1 \(rms_norm\); fix: start"
        ):
            norm(opened)

    @pytest.mark.parametrize(
        ("fault", "check"), [("nan", "agrees_with_oracle"), ("random", "repeats"),
                             ("stream", "agrees_with_oracle")]
    )  # fmt: skip
    def test_kit_catches(self, fault: str, check: str) -> None:
        found = examine(session(f"{fault}:rms_norm"), ["rms_norm", "silu"], ["float32"], [check])
        assert {f.op for f in found if f.status == "fail"} == {"rms_norm"}

    def test_kit_passes_the_sound_device(self) -> None:
        found = examine(session(), ["rms_norm", "silu"], ["float32"], ["agrees_with_oracle", "repeats"])
        assert {f.status for f in found} == {"pass"}

    @pytest.mark.parametrize("text", ["ooms:3", "oom", "oom:0", "oom:x", "nan:"])
    def test_unknown_fault(self, text: str) -> None:
        with pytest.raises(FdError, match=r"\[POLICY\] FD_SIM_FAULT: want oom:"):
            faults.parse((text,))


@pytest.mark.parametrize(
    ("fault", "text"),
    [("oom:9", "bytes, have 0 free"), ("async:7", "have kernel call 7"), ("lost:40", "no device since")],
)
def test_command_reports_a_failing_device(fault: str, text: str, tmp_path: Any) -> None:
    """A model on a device that fails in the middle: its last word has want, have and fix."""
    words = ["generate", "--platform", "simulated", "--max-tokens", "2", "--max-model-len", "64"]
    command = [sys.executable, "-m", "fd_core", *words, "--kv-cache-memory", "2M", "A decorator is"]
    env = {**os.environ, "FD_SIM_FAULT": fault, "XDG_CACHE_HOME": str(tmp_path)}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("fd generate: ")
    assert "platform 'simulated': want" in last
    assert text in last
    assert "fix: " in last
