"""The gated feed-forward block."""

from __future__ import annotations

from collections.abc import Iterator

from fd_core.layers.context import ModelContext
from fd_core.layers.linear import Linear
from fd_core.layers.norm import RMSNorm
from fd_core.layers.residual import Residual
from fd_core.layers.scratch import Scratch
from fd_core.layers.weight import Weighted


class GatedMLP:
    """x + W_down (silu(W_gate h) * W_up h) with h = norm(x), Shazeer 2020 (SwiGLU)."""

    def __init__(
        self,
        context: ModelContext,
        scratch: Scratch,
        hidden_size: int,
        intermediate_size: int,
        prefix: str,
        bias: bool = False,
    ) -> None:
        self._swiglu = context.ops.swiglu
        rows = [(f"{prefix}.gate_proj", intermediate_size), (f"{prefix}.up_proj", intermediate_size)]
        self.gate_up = Linear(context, hidden_size, rows, bias=bias)
        self.down = Linear(context, intermediate_size, [(f"{prefix}.down_proj", hidden_size)], bias=bias)
        activation = context.activation_dtype
        self._gate_up = scratch.buffer("gate_up", (2 * intermediate_size,), activation)
        self._inner = scratch.buffer("inner", (intermediate_size,), activation)

    def layers(self) -> Iterator[Weighted]:
        yield from (self.gate_up, self.down)

    def __call__(self, residual: Residual, norm: RMSNorm) -> None:
        n = residual.rows
        inner = self._inner.rows(n)
        if not self.gate_up.gated(residual, norm, inner):
            gate_up = self._gate_up.rows(n)
            self.gate_up.normed(residual, norm, gate_up)
            self._swiglu(gate_up, None, inner)
        self.down.onto(inner, residual)
