"""Every compiled CPU kernel, every case, every dtype, against the op's NumPy oracle."""

from __future__ import annotations

import pytest

from fd_core.api.dtype import DType
from fd_core.ops.catalogue import catalogue
from fd_core.ops.schema import Case, OpDef
from fd_core.testkit.check import check_case

fd_cpu = pytest.importorskip("fd_cpu.library", reason="fd-cpu is not installed")
from fd_cpu.kernels import kernels  # noqa: E402

ROWS = [
    pytest.param(catalogue()[kernel.op], case, dtype, id=f"{kernel.op}-{case.id}-{dtype}")
    for kernel in kernels()
    for case in catalogue()[kernel.op].cases
    for dtype in case.dtypes
]


@pytest.mark.parametrize(("definition", "case", "dtype"), ROWS)
def test_kernel_agrees_with_oracle(definition: OpDef, case: Case, dtype: DType) -> None:
    check_case(definition, case, dtype, getattr(fd_cpu, definition.name))
