"""What the tests of fd-xpu share: a session on Paddle's CPU place, which stands in for an XPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fd_core.host.freeze import freeze
from fd_core.host.ledger import Ledger
from fd_core.host.session import Session
from fd_core.ops.catalogue import catalogue


@pytest.fixture(scope="package")
def session() -> Iterator[Session]:
    pytest.importorskip("fd_xpu", reason="fd-xpu is not installed")
    pytest.importorskip("paddle", reason="paddlepaddle is not installed")
    from fd_xpu.attention import PaddleAttention
    from fd_xpu.kernels import kernels
    from fd_xpu.platform import XPUPlatform
    from fd_xpu.quant import METHODS

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FD_XPU_PLACE", "cpu")
        platform = XPUPlatform()
        info = platform.open(0)
        ops = freeze(catalogue(), kernels(), info, policy="error")
        methods = {method.name: method for method in METHODS}
        yield Session(platform, info, ops, [PaddleAttention], methods, Ledger(ops, {}))
