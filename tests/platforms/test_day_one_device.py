"""A platform with memory and copies alone runs every op through its oracle, counted as fallbacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fd_core import ops
from fd_core.api.kernel import ParamKind
from fd_core.api.tensor import Tensor, from_numpy
from fd_core.host import session as sessions
from fd_core.host.freeze import freeze
from fd_core.host.ledger import Ledger
from fd_core.host.session import Session
from fd_core.ops.catalogue import catalogue
from fd_core.ops.schema import OpDef
from fd_core.testkit.check import arguments, assert_close, run_oracle
from tests.platforms.byte_device import DEVICE, ByteDevice


@pytest.fixture
def session() -> Session:
    platform = ByteDevice()
    info = platform.open(0)
    table = freeze(catalogue(), [], info, policy="allow")
    return Session(platform, info, table, [], {}, Ledger(table, {}))


def smallest(definition: OpDef) -> Any:
    """The case with the fewest bytes, so that the device's little memory holds it."""

    def size(case: Any) -> int:
        inputs = case.args(np.random.default_rng(0), case.dtypes[0].numpy())
        return sum(v.nbytes for v in inputs.values() if isinstance(v, np.ndarray)) or 1 << 30

    return min((case for case in definition.cases if not case.bench), key=size)


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_every_op_runs_through_copies(session: Session, name: str) -> None:
    definition = catalogue()[name]
    case = smallest(definition)
    inputs = case.args(np.random.default_rng(1), case.dtypes[0].numpy())
    want = run_oracle(definition, inputs)
    values = arguments(definition, inputs)
    placed = [session.platform.from_host(v) if isinstance(v, np.ndarray) else v for v in values.values()]
    getattr(session.ops, name)(*placed)
    for param, value in zip(definition.spec.params, placed, strict=True):
        if isinstance(value, Tensor) and param.kind is not ParamKind.IN:
            assert_close(definition, param.name, session.platform.to_host(value), want[param.name])
    op = session.ops.table[name]
    assert (op.calls, op.fallbacks, op.kernel.provider) == (1, 1, "oracle")


def test_strided_device_views(session: Session) -> None:
    wide = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    weight = np.ones(8, np.float32)
    x = session.platform.from_host(wide).slice(4, 12, dim=1)
    out = session.platform.empty(x.spec)
    session.ops.rms_norm(x, session.platform.from_host(weight), 1e-6, out)
    part = wide[:, 4:12]
    want = part / np.sqrt((part * part).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(session.platform.to_host(out), want, rtol=1e-5)


def test_public_call_allocates_on_the_device(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "current_session", lambda: session)
    x = session.platform.from_host(np.full((2, 4), 3.0, np.float32))
    weight = session.platform.from_host(np.ones(4, np.float32))
    got = ops.rms_norm(x, weight, 0.0)
    assert got.device == DEVICE
    np.testing.assert_allclose(session.platform.to_host(got), 1.0)
    with pytest.raises(ValueError, match=r"rms_norm.weight: want a tensor on bytes:0, have one on cpu:0"):
        ops.rms_norm(x, np.ones(4, np.float32), 0.0)


def test_host_code_cannot_read_device_memory(session: Session) -> None:
    with pytest.raises(TypeError, match="not in host memory"):
        session.platform.from_host(np.ones(3, np.float32)).numpy()
    assert from_numpy(np.ones(3)).storage.on_host
