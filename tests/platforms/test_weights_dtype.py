"""A checkpoint's element type that a device cannot compute in is refused before anything is loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fd_core.api import dtype as dt
from fd_core.api.device import Device, DeviceInfo
from fd_core.api.dtype import FLOATS, DType
from fd_core.api.kernel import Kernel, Require
from fd_core.api.verdict import ReasonCode
from fd_core.engine.build import refuse_dtype
from fd_core.host.errors import UnsupportedOpError
from fd_core.host.freeze import freeze
from fd_core.host.ledger import Ledger
from fd_core.host.reference import ReferencePlatform
from fd_core.host.session import Session
from fd_core.host.weights_dtype import check_weights_dtype
from fd_core.ops.catalogue import catalogue

OLD = DeviceInfo(Device("toy", 0, 77), "Toy 100", "toy_1", 1, 1 << 30)
NEW = replace(OLD, arch="toy_2", arch_rank=2)
EARLY: tuple[DType, ...] = (dt.float16, dt.float32)


def session(device: DeviceInfo, policy: str = "warn") -> Session:
    """A device that took bfloat16 up with its second generation."""
    kernels = [
        Kernel(op, "toy", print, Require(arch=(low, None), dtypes={parameter: types}), priority=low)
        for op, parameter in (("embedding", "out"), ("rms_norm", "x"), ("linear", "x"))
        for low, types in ((1, EARLY), (2, FLOATS))
    ]
    ops = freeze(catalogue(), kernels, device, policy=policy)
    return Session(ReferencePlatform(), device, ops, [], {}, Ledger(ops, {}))


def test_refused_with_the_type_to_ask_for() -> None:
    with pytest.raises(UnsupportedOpError, match="--dtype float16") as raised:
        refuse_dtype(session(OLD), dt.bfloat16)
    (reason,) = raised.value.verdict.reasons
    assert reason.code is ReasonCode.DTYPE
    assert "toy_1" in reason.subject
    assert reason.want == "float16 | float32"
    assert reason.have == "bfloat16"


@pytest.mark.parametrize("kind", EARLY, ids=str)
def test_taken_where_kernels_are(kind: DType) -> None:
    refuse_dtype(session(OLD), kind)


def test_a_later_generation_takes_it() -> None:
    refuse_dtype(session(NEW), dt.bfloat16)


def test_a_device_with_activations_of_its_own_type_takes_any_weights() -> None:
    refuse_dtype(session(replace(OLD, activation_dtype=dt.float32)), dt.bfloat16)


def test_oracles_refuse_nothing() -> None:
    ops = freeze(catalogue(), [], OLD, policy="warn")
    assert check_weights_dtype(ops, OLD, dt.bfloat16).ok


def test_who_allows_the_oracle_gets_it() -> None:
    refuse_dtype(session(OLD, policy="allow"), dt.bfloat16)
