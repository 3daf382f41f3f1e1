"""Mixture of experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import paddle

from fd_core.layers import moe
from fd_core.paddle.context import LayerContext
from fd_core.paddle.layer import EngineLayer, Layer, rows_of


class FusedMoE(Layer):
    """Each token through the `top_k` experts that its router picks. x [..., hidden].

    Parameters: `gate.weight` [hidden, experts]; `experts.gate_up` [experts, hidden, 2 * intermediate] and
    `experts.down` [experts, intermediate, hidden].
    """

    def __init__(
        self, context: LayerContext, hidden_size: int, intermediate_size: int, num_experts: int, top_k: int,
        *, norm_topk_prob: bool = True, prefix: str = "mlp",
    ) -> None:  # fmt: skip
        super().__init__()
        if context.tp.size > 1:
            raise ValueError(f"{prefix}: want 1 tensor-parallel rank for experts, have {context.tp.size}")
        sizes = moe.ExpertSizes(hidden_size, intermediate_size, num_experts, top_k, norm_topk_prob)
        self._block = moe.MixtureOfExperts(context.model, context.scratch, sizes, prefix)
        self.gate = EngineLayer(context, self._block.router)
        self.experts = EngineLayer(context, self._block.experts)

    def parts(self) -> Iterator[EngineLayer]:
        yield from (self.gate, self.experts)

    def forward(self, x: paddle.Tensor) -> Any:
        self.gate.ready()
        out = self.experts.run(self._block.run, rows_of(x), (x.shape[-1],))
        return out if x.ndim == 2 else out.reshape(x.shape)
