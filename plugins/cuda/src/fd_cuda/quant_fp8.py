"""Float8 weights and activations on the device's own float8 products."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from fd_core.api.device import DeviceInfo
from fd_core.api.quant import LinearSpec
from fd_core.api.tensor import Tensor
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.quantization.fp8 import Float8Linear
from fd_cuda import library

#: The first architecture whose tensor cores multiply float8.
FIRST = 89


class CudaFloat8Linear(Float8Linear):
    """Method "wfp8afp8": both steps in one call, which reads weights while the kernel before it ends."""

    priority: ClassVar[int] = 100
    kernel: ClassVar[str] = "linear_fp8_dynamic"

    @cached_property
    def _linear(self) -> Any:
        return library.function(self.kernel)

    @classmethod
    def supports(cls, spec: LinearSpec, device: DeviceInfo) -> Verdict:
        """As everywhere, and sm_89 or newer."""
        subject, fix = f"quantisation {cls.name}", "use quantization w8a8"
        want = f"sm_{FIRST} or newer"
        new = device.arch_rank >= FIRST
        arch = YES if new else Verdict.no(ReasonCode.ARCH, subject, want, device.arch, fix)
        return arch & super().supports(spec, device)

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        self._linear(x, *packed, bias, out)
