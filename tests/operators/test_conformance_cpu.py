"""Every compiled CPU kernel, every case and dtype that its record takes, against the op's NumPy oracle."""

from __future__ import annotations

import numpy as np
import pytest

from fd_core.api.dtype import DType
from fd_core.api.kernel import Kernel
from fd_core.api.tensor import from_numpy
from fd_core.host.dispatch import accepts
from fd_core.ops.catalogue import catalogue
from fd_core.ops.schema import Case, OpDef
from fd_core.testkit.check import arguments, check_case

fd_cpu = pytest.importorskip("fd_cpu.library", reason="fd-cpu is not installed")
from fd_cpu.kernels import kernels  # noqa: E402

ROWS = [
    pytest.param(kernel, catalogue()[kernel.op], case, dtype, id=f"{kernel.op}-{case.id}-{dtype}")
    for kernel in kernels()
    for case in catalogue()[kernel.op].cases
    for dtype in case.dtypes
]


@pytest.mark.parametrize(("kernel", "definition", "case", "dtype"), ROWS)
def test_kernel_agrees_with_oracle(kernel: Kernel, definition: OpDef, case: Case, dtype: DType) -> None:
    values = arguments(definition, case.args(np.random.default_rng(0), dtype.numpy())).values()
    call = tuple(from_numpy(v) if isinstance(v, np.ndarray) else v for v in values)
    if not (taken := accepts(kernel, definition.spec, call)).ok:
        pytest.skip(str(taken))
    check_case(definition, case, dtype, getattr(fd_cpu, definition.name))
