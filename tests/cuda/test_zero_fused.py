"""Products over int4 weights with zero points that take a norm, a gate or an addition along: the bits of
the ops one after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

pytest.importorskip("fd_cuda")
from fd_cuda.quant import Int4Linear

from fd_core.api import dtype as dt
from fd_core.api.quant import LinearSpec
from fd_core.api.tensor import Tensor
from fd_core.host.session import Session
from tests.cuda.gpu import gpu_session
from tests.cuda.test_linear_fused import CANARY, GROUPS, HALVES, Case, Setup, cases, same

pytestmark = pytest.mark.device("cuda")


@pytest.fixture(scope="module")
def session() -> Session:
    return gpu_session("linear_int4_zero_fused", "linear_int4_zero", "int4_steps", "rms_norm", "swiglu")


class ZeroSetup(Setup):
    """The case's weight, moved off zero, with zero points."""

    def __init__(self, session: Session, case: Case) -> None:
        super().__init__(session, case)
        self.plain, self.fused = "linear_int4_zero", "linear_int4_zero_fused"

    def packed(self, weight: Tensor) -> list[Tensor]:
        platform, config = self.session.platform, {"group_size": GROUPS[self.case.kind], "zero_point": True}
        method = Int4Linear(platform.open(0), platform, self.session.ops, config)
        moved: Any = platform.to_host(weight).astype(np.float32) + np.float32(0.02)
        spec = LinearSpec(weight.shape[1], weight.shape[0], False, dt.float32, dt.bfloat16, prefix="layer")
        return list(method.process_weights(spec, {"weight": platform.from_host(moved)}))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases.filter(lambda case: case.kind in GROUPS))
def test_bits_of_the_ops_in_turn(session: Session, case: Case) -> None:
    setup = ZeroSetup(session, case)
    got, beside = setup.run()
    same(got, setup.in_turn())
    assert (beside == CANARY).all()


@pytest.mark.parametrize(
    "case",
    [
        Case("int4-64", HALVES[0], 1, 14336, 4096, fold="gate"),
        Case("int4-128", HALVES[0], 8, 4096, 14336, norm=False, fold="add"),
        Case("int4-row", HALVES[1], 3, 6144, 4096, bias=True),
    ],
    ids=str,
)
def test_large_layers(session: Session, case: Case) -> None:
    setup = ZeroSetup(session, case)
    same(setup.run()[0], setup.in_turn())
