"""Each way to have no GPU is a reason of its own, with the fix; facts become devices. No GPU needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_driver import FakeDriver, Gpu

from fd_core.api.manifest import Presence
from fd_core.api.verdict import YES, Reason, ReasonCode
from fd_core.host.presence import check_presence

fd_cuda = pytest.importorskip("fd_cuda")
from fd_cuda import driver, library, probe  # noqa: E402
from fd_cuda.table import tomllib  # noqa: E402

PLUGIN = Path(__file__).parents[2] / "plugins" / "cuda"


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    """A /dev with the device nodes of two GPUs."""
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "verdict", lambda: YES)


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeDriver) -> None:
    monkeypatch.setattr(driver, "library", lambda: fake)


def only_reason(report) -> Reason:
    assert not report.devices
    (reason,) = report.verdict.reasons
    assert reason.want
    assert reason.have
    assert reason.fix
    return reason


def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(driver, "library", missing)


def test_no_driver_and_no_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_library(monkeypatch)
    reason = only_reason(probe.probe(tmp_path))
    assert reason.code is ReasonCode.NO_DEVICE
    assert "install an NVIDIA driver" in reason.fix


def test_the_manifest_says_the_same_without_a_probe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Core answers in these words where it finds neither nodes nor the library, and starts no probe."""
    no_library(monkeypatch)
    monkeypatch.setattr(probe, "device_nodes", lambda nodes: False)
    declared = Presence(**tomllib.loads((PLUGIN / "plugin.toml").read_text(encoding="utf-8"))["presence"])
    told = check_presence(declared, tmp_path, {})
    assert told.reasons == (only_reason(probe.probe()),)
    assert declared.libraries == (driver.LIBRARY,)
    for node in ("nvidia0", "nvidiactl", "nvhost-gpu", "dxg"):  # a PC, its control node alone, Tegra, WSL
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / node).touch()
        assert check_presence(declared, tmp_path, {}).ok
        (tmp_path / "dev" / node).unlink()


def test_nodes_without_the_library(monkeypatch: pytest.MonkeyPatch, nodes: Path) -> None:
    no_library(monkeypatch)
    reason = only_reason(probe.probe(nodes))
    assert reason.code is ReasonCode.DRIVER
    assert "container" in reason.fix


def test_container_without_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, FakeDriver(init=driver.NO_DEVICE))
    reason = only_reason(probe.probe(tmp_path))
    assert reason.code is ReasonCode.NO_DEVICE
    assert "--gpus" in reason.fix


def test_no_visible_device(monkeypatch: pytest.MonkeyPatch, nodes: Path) -> None:
    use(monkeypatch, FakeDriver(init=driver.NO_DEVICE))
    reason = only_reason(probe.probe(nodes))
    assert reason.code is ReasonCode.NO_DEVICE
    assert "CUDA_VISIBLE_DEVICES" in reason.fix


def test_driver_in_disorder(monkeypatch: pytest.MonkeyPatch, nodes: Path) -> None:
    use(monkeypatch, FakeDriver(init=803))
    reason = only_reason(probe.probe(nodes))
    assert reason.code is ReasonCode.DRIVER
    assert "CUDA_ERROR_803" in reason.have


def test_driver_too_old(monkeypatch: pytest.MonkeyPatch, nodes: Path) -> None:
    use(monkeypatch, FakeDriver(Gpu(), version=12080))
    reason = only_reason(probe.probe(nodes))
    assert reason.code is ReasonCode.DRIVER
    assert "12.8" in reason.have
    assert "13.0" in reason.want


def test_prohibited_device(monkeypatch: pytest.MonkeyPatch, nodes: Path) -> None:
    use(monkeypatch, FakeDriver(Gpu(compute_mode=probe.PROHIBITED)))
    assert only_reason(probe.probe(nodes)).code is ReasonCode.DEVICE_BUSY


@pytest.mark.parametrize("capability", [(6, 1), (3, 5)])
def test_architecture_below_the_ladder(
    monkeypatch: pytest.MonkeyPatch, nodes: Path, capability: tuple[int, int]
) -> None:
    use(monkeypatch, FakeDriver(Gpu("old", capability)))
    reason = only_reason(probe.probe(nodes))
    assert reason.code is ReasonCode.ARCH
    assert "sm_70" in reason.want


def test_facts_become_devices(monkeypatch: pytest.MonkeyPatch, nodes: Path) -> None:
    use(monkeypatch, FakeDriver(Gpu(), Gpu("NVIDIA L4", (8, 9), 24 << 30, 58)))
    report = probe.probe(nodes)
    assert report.verdict.ok
    h200, l4 = report.devices
    assert (h200.arch, h200.arch_rank, h200.units) == ("sm_90", 90, 132)
    assert (l4.arch, l4.memory, l4.device.index) == ("sm_89", 24 << 30, 1)
    assert "wgmma" in h200.features - l4.features


def test_one_usable_device_is_enough(monkeypatch: pytest.MonkeyPatch, nodes: Path) -> None:
    use(monkeypatch, FakeDriver(Gpu("old", (6, 0)), Gpu()))
    report = probe.probe(nodes)
    assert report.verdict.ok
    assert [device.device.index for device in report.devices] == [1]
