"""Linear layers of any quantisation method, whole or split over a tensor-parallel group.

Weights are [in, out], as Paddle's. `shards`: the checkpoint matrices that one weight holds side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle

from fd_core.layers import linear as engine
from fd_core.paddle.context import LayerContext, TensorParallel
from fd_core.paddle.layer import EngineLayer, rows_of


class Linear(EngineLayer):
    """y = x @ weight + bias. x [..., in]; y [..., out].

    `prefix` is the layer's name in checkpoints (`shards` the names and widths of several). `split`: the
    dimension of [out, in] that is split over the ranks, None for a whole weight.
    """

    def __init__(
        self,
        context: LayerContext,
        in_features: int,
        out_features: int | Sequence[int],
        *,
        with_bias: bool = False,
        prefix: str | Sequence[str] = "linear",
        table: bool = False,
        name: str = "",
        split: int | None = None,
    ) -> None:
        widths = [out_features] if isinstance(out_features, int) else [*out_features]
        names = [prefix] if isinstance(prefix, str) else [*prefix]
        self.in_features, self.out_features = in_features, sum(widths)
        self.split = split
        shards = list(zip(names, widths, strict=True))
        inner = engine.Linear(context.model, in_features, shards, bias=with_bias, table=table, name=name)
        super().__init__(context, inner)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        kind = str(x.dtype).rpartition(".")[2]
        out = self.run(self.engine, rows_of(x), (self.out_features,), kind)
        return out if x.ndim == 2 else out.reshape([*x.shape[:-1], self.out_features])


class ReplicatedLinear(Linear):
    """The whole weight on every rank."""


class ColumnParallelLinear(Linear):
    """Each rank computes its part of the outputs; `out_features` counts all ranks'."""

    def __init__(
        self,
        context: LayerContext,
        in_features: int,
        out_features: int,
        *,
        prefix: str = "linear",
        **more: Any,
    ) -> None:
        part = context.tp.part(out_features, f"{prefix}.out_features")
        super().__init__(context, in_features, part, prefix=prefix, split=0, **more)


class MergedColumnParallelLinear(Linear):
    """Several column-parallel layers on one input, as gate and up: each rank has its part of each."""

    def __init__(
        self, context: LayerContext, in_features: int, out_features: Sequence[int], *,
        prefix: Sequence[str], **more: Any,
    ) -> None:  # fmt: skip
        parts = [context.tp.part(n, f"{p}.out_features") for n, p in zip(out_features, prefix, strict=True)]
        super().__init__(context, in_features, parts, prefix=prefix, split=0, **more)


class QKVParallelLinear(Linear):
    """Queries, keys and values on one input; each rank has its heads of each."""

    def __init__(
        self, context: LayerContext, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int, *,
        prefix: str = "self_attn", **more: Any,
    ) -> None:  # fmt: skip
        self.num_heads = context.tp.part(num_heads, f"{prefix}.num_heads")
        self.num_kv_heads = context.tp.part(num_kv_heads, f"{prefix}.num_kv_heads")
        self.head_dim = head_dim
        widths = [n * head_dim for n in (self.num_heads, self.num_kv_heads, self.num_kv_heads)]
        names = [f"{prefix}.{part}_proj" for part in "qkv"]
        super().__init__(context, hidden_size, widths, prefix=names, split=0, **more)

    def heads(self, qkv: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """q, k, v [tokens, heads, head_dim]: views of the projection's result."""
        shaped = qkv.reshape([qkv.shape[0], -1, self.head_dim])
        first, second = self.num_heads, self.num_heads + self.num_kv_heads
        return shaped[:, :first], shaped[:, first:second], shaped[:, second:]


class RowParallelLinear(Linear):
    """Each rank takes its part of the inputs; the sum over the ranks is the result."""

    def __init__(
        self, context: LayerContext, in_features: int, out_features: int, *, with_bias: bool = False,
        prefix: str = "linear", **more: Any,
    ) -> None:  # fmt: skip
        part = context.tp.part(in_features, f"{prefix}.in_features")
        bias = with_bias and context.tp.rank == 0  # added once
        super().__init__(context, part, out_features, with_bias=bias, prefix=prefix, split=1, **more)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return reduce(super().forward(x), self.context.tp)


def reduce(x: paddle.Tensor, tp: TensorParallel) -> paddle.Tensor:
    """The sum of all ranks' `x`, in place."""
    if tp.size > 1:
        paddle.distributed.all_reduce(x, group=tp.group)
    return x
