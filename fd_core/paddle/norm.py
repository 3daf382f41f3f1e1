"""Norm and embedding."""

from __future__ import annotations

from typing import Any

import paddle

from fd_core.api.tensor import Tensor
from fd_core.layers import embedding, norm
from fd_core.paddle.context import LayerContext
from fd_core.paddle.layer import EngineLayer, apply, rows_of
from fd_core.paddle.tensors import name_of


class RMSNorm(EngineLayer):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""

    def __init__(
        self, context: LayerContext, hidden_size: int, eps: float = 1e-5, prefix: str = "norm"
    ) -> None:
        self.hidden_size = hidden_size
        super().__init__(context, norm.RMSNorm(context.model, hidden_size, eps, prefix))

    def forward(self, x: paddle.Tensor, residual: paddle.Tensor | None = None) -> Any:
        """norm(x); with `residual`: residual += x and x = norm(residual), in place, returned as a pair."""
        if residual is None:
            out = self.run(self.engine, rows_of(x), (self.hidden_size,))
            return out if x.ndim == 2 else out.reshape(x.shape)
        self.ready()
        x, residual = apply(self.context.session, self._add, [x, residual], [])
        return x, residual

    def _add(self, changed: list[Tensor], read: list[Tensor]) -> None:
        self.engine.add(*changed)


class Embedding(EngineLayer):
    """Rows of a table [vocabulary, hidden]; ids int32 or int64 [tokens]."""

    def __init__(
        self, context: LayerContext, vocab_size: int, hidden_size: int, prefix: str = "embed_tokens"
    ) -> None:
        self.hidden_size = hidden_size
        super().__init__(context, embedding.Embedding(context.model, vocab_size, hidden_size, prefix))

    def forward(self, ids: paddle.Tensor) -> paddle.Tensor:
        kind = name_of(self.context.model.activation_dtype)
        return self.run(self.engine, ids, (self.hidden_size,), kind)
