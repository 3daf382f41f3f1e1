"""What hardware does and the stand-in does not: memory that the host cannot name, the runtime's counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fd_core.api import dtype as dt
from fd_core.api.attention import KVLayout
from fd_core.api.device import Device, DeviceInfo
from fd_core.api.platform import DeviceError
from fd_core.api.tensor import TensorSpec, empty_host, from_numpy
from fd_core.engine.kv_pools import KVPools
from fd_core.host.freeze import freeze
from fd_core.host.ledger import Ledger
from fd_core.host.session import Session
from fd_core.ops.catalogue import catalogue
from fd_core.testkit.kit import examine
from fd_core.testkit.model_checks import examine_model

pytest.importorskip("fd_xpu", reason="fd-xpu is not installed")
pytest.importorskip("paddle", reason="paddlepaddle is not installed")
from fd_xpu import memory
from fd_xpu.attention import PaddleAttention
from fd_xpu.facts import Facts, Paddle
from fd_xpu.kernels import kernels
from fd_xpu.platform import XPUPlatform
from fd_xpu.probe import DLPACK_CODE
from fd_xpu.quant import METHODS


class FarPlatform(XPUPlatform):
    """The stand-in under the device code of hardware: fd-core must move everything through the platform."""

    def open(self, index: int) -> DeviceInfo:
        info = super().open(index)
        self.device = Device("xpu", index, DLPACK_CODE)
        return replace(info, device=self.device, features=info.features - {"host_memory"})


@pytest.fixture(scope="module")
def far() -> Iterator[Session]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FD_XPU_PLACE", "cpu")
        platform = FarPlatform()
        info = platform.open(0)
        ops = freeze(catalogue(), kernels(), info, policy="error")
        methods = {method.name: method for method in METHODS}
        yield Session(platform, info, ops, [PaddleAttention], methods, Ledger(ops, {}))


@pytest.mark.parametrize("op", ["linear", "embedding", "reshape_and_cache_flash", "apply_bad_words"])
def test_ops_conform(far: Session, op: str) -> None:
    failures = [finding for finding in examine(far, [op]) if finding.status == "fail"]
    assert not failures, failures[:3]


def test_a_model_conforms(far: Session) -> None:
    """Prompt, chunks and batches, greedy text: weights and lists go there, logits come back."""
    findings = list(examine_model(far, ["float32", "bfloat16"]))
    assert len(findings) >= 6
    assert all(finding.status == "pass" for finding in findings), findings


def test_blocks_are_swapped_out_and_in(far: Session) -> None:
    layout = KVLayout((4, 2, 8), 0, dt.bfloat16, 2 * 64 * 2)
    pools = KVPools(far.platform, far.ops, [layout], blocks=5, host_blocks=3)
    rng = np.random.default_rng(0)
    before = rng.standard_normal((5, 4, 2, 8)).astype(dt.bfloat16.numpy())
    for pool in (pools.device[0].key, pools.device[0].value):
        far.platform.copy_(pool, from_numpy(before))
    pools.swap_out([(4, 0), (1, 2)])
    assert pools.host[0].key.numpy()[2].tobytes() == before[1].tobytes()
    pools.swap_in([(2, 0), (0, 3)])
    after = far.platform.to_host(pools.device[0].value)
    assert after[0].tobytes() == before[1].tobytes()
    assert after[3].tobytes() == before[4].tobytes()
    assert after[2].tobytes() == before[2].tobytes()


def test_host_tensors_are_no_arguments(far: Session) -> None:
    here = empty_host(TensorSpec((2, 4), dt.float32))
    there = far.platform.empty(TensorSpec((2, 4), dt.float32))
    with pytest.raises(ValueError, match=r"silu.x: want a tensor on xpu:0, have one on cpu:0"):
        far.ops.silu(here, there)
    with pytest.raises(TypeError, match="is not in host memory"):
        there.numpy()


class Runtime:
    """What Paddle's XPU build answers, as its Python sources describe it."""

    def __init__(self, failing: bool = False) -> None:
        self.version = SimpleNamespace(full_version="3.3.0")
        xpu = SimpleNamespace(memory_total=lambda i: 96 << 30, memory_used=lambda i: (i + 1) << 30)
        stream = SimpleNamespace(stream_base=SimpleNamespace(raw_stream=77))
        self.device = SimpleNamespace(
            xpu=xpu, synchronize=self.wait, current_stream=lambda place: stream, set_device=self.use
        )
        self.failing = failing
        self.used: list[str] = []

    def use(self, name: str) -> str:
        self.used.append(name)
        return f"Place({name})"

    def wait(self, place: Any) -> None:
        if self.failing:
            raise RuntimeError("(External) XPU Error <716>")


NODES = Facts(
    nodes=tuple(f"/dev/xpu{i}" for i in range(4)),
    control=True,
    driver="5.0.21.26",
    runtime="libxpurt.so",
    chips=("p800",) * 4,
    paddle=Paddle("3.3.0", "5.0.21.21"),
)


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    runtime = Runtime()
    monkeypatch.delenv("FD_XPU_PLACE", raising=False)
    monkeypatch.setattr("fd_xpu.platform.gather", lambda: NODES)
    monkeypatch.setattr("fd_xpu.platform.check_views", lambda platform: None)
    monkeypatch.setattr("fd_xpu.platform.fused_features", lambda place: frozenset({"swiglu:bfloat16"}))
    monkeypatch.setattr(memory, "paddle", lambda: runtime)
    return runtime


class TestHardware:
    """The calls that hardware would get, on a description of Paddle's XPU build: no proof, a rehearsal."""

    def test_opened(self, hardware: Runtime) -> None:
        platform = XPUPlatform()
        info = platform.open(2)
        assert hardware.used == ["xpu:2"]
        assert (str(info.device), info.device.code) == ("xpu:2", DLPACK_CODE)
        assert (info.arch, info.arch_rank, info.memory) == ("p800", 3, 96 << 30)
        assert info.features == {"paddle_tensors", "swiglu:bfloat16"}
        assert info.activation_dtype is None  # the weights' own type
        assert dict(info.extra) == {"paddle": "3.3.0", "place": "xpu:2"}

    def test_memory_is_the_runtimes_count(self, hardware: Runtime) -> None:
        platform = XPUPlatform()
        platform.open(1)
        found = platform.memory()
        assert (found.total, found.used, found.free) == (96 << 30, 2 << 30, 94 << 30)
        with pytest.raises(MemoryError, match=rf"want {95 << 30} bytes .* have {94 << 30} bytes free"):
            platform.empty(TensorSpec((95, 1 << 30), dt.uint8))

    def test_stream_and_failure(self, hardware: Runtime) -> None:
        platform = XPUPlatform()
        platform.open(0)
        assert platform.stream() == 77
        platform.synchronize()
        hardware.failing = True
        with pytest.raises(
            DeviceError, match=r"xpu:0: want its work done, have \(External\) XPU Error <716>"
        ):
            platform.synchronize()

    def test_an_index_beyond_the_nodes(self, hardware: Runtime) -> None:
        with pytest.raises(IndexError, match="want a device index below 4, have 4"):
            XPUPlatform().open(4)
