"""Attention over the paged cache and rotary positions, on Paddle's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import paddle

from fd_core.api.attention import AttentionBatch, AttentionSpec, KVCache
from fd_core.api.tensor import Tensor
from fd_core.layers.rotary import rotary_table
from fd_core.ops.methods import GuestAttention
from fd_core.paddle.context import LayerContext
from fd_core.paddle.layer import Layer, apply, new_like


@dataclass(slots=True)
class ForwardMeta:
    """One step: where its tokens go and what they see. All tensors are Paddle's.

    cu_seqlens_q [seqs + 1], seq_lens [seqs], block_table [seqs, max_blocks] int32; slot_mapping and
    positions [tokens] int64 and int32; caches: (keys, values) by layer, made by `Attention.new_cache`.
    Unknown attributes raise, as everywhere.
    """

    cu_seqlens_q: paddle.Tensor
    seq_lens: paddle.Tensor
    block_table: paddle.Tensor
    slot_mapping: paddle.Tensor
    positions: paddle.Tensor
    caches: Sequence[tuple[paddle.Tensor, paddle.Tensor]]
    max_query_len: int
    max_seq_len: int
    _plans: dict[AttentionSpec, Any] = field(default_factory=dict, repr=False)

    def plan(self, attention: GuestAttention) -> Any:
        """The backend's plan of this step, worked out once for all layers of equal specification."""
        key = attention.backend.spec
        if key not in self._plans:
            self._plans[key] = attention.plan(self._batch())
        return self._plans[key]

    def _batch(self) -> AttentionBatch:
        tokens, sequences = int(self.slot_mapping.shape[0]), int(self.seq_lens.shape[0])
        return AttentionBatch(
            tokens, sequences, self.cu_seqlens_q, self.seq_lens, self.block_table, self.slot_mapping,
            self.max_query_len, self.max_seq_len,
        )  # fmt: skip


_LISTS = ("cu_seqlens_q", "seq_lens", "block_table", "slot_mapping")


class Attention(Layer):
    """softmax(q k^T * scale) v over the cache of `layer_id`; writes the new keys and values first."""

    def __init__(
        self,
        context: LayerContext,
        layer_id: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        scale: float | None = None,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> None:
        super().__init__()
        model = context.model
        self.layer_id = layer_id
        heads, groups = (
            context.tp.part(num_heads, "num_heads"),
            context.tp.part(num_kv_heads, "num_kv_heads"),
        )
        sizes = (heads, groups, head_dim, head_dim**-0.5 if scale is None else scale)
        types = (model.activation_dtype, model.cache_dtype, model.block_size)
        spec = AttentionSpec(*sizes, *types, window, soft_cap)
        self.attention = GuestAttention.select(spec, model.attention_backend or None, context.session)

    def new_cache(self, blocks: int) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Pools for `blocks` blocks of this layer, uninitialised."""
        return self.attention.cache(paddle.empty([1]), blocks)

    def forward(
        self, q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor, forward_meta: ForwardMeta
    ) -> paddle.Tensor:
        """q, k, v [tokens, heads, head_dim], rotated; out [tokens, heads * head_dim]."""
        cache = forward_meta.caches[self.layer_id]
        if isinstance(q, paddle.pir.Value):
            out = self._in_graph(q, k, v, cache, forward_meta)
        else:
            out = self.attention.run(forward_meta.plan(self.attention), q, k, v, cache)
        return out.reshape([q.shape[0], -1])

    def _in_graph(self, q: Any, k: Any, v: Any, cache: Any, meta: ForwardMeta) -> Any:
        """The step is planned when the graph runs, from the lists as they are then."""
        lists = [getattr(meta, name) for name in _LISTS]
        limits: dict[str, Any] = {"max_query_len": meta.max_query_len, "max_seq_len": meta.max_seq_len}
        backend = self.attention.backend

        def work(changed: list[Tensor], read: list[Tensor]) -> None:
            sizes: dict[str, Any] = {"num_tokens": read[0].shape[0], "num_seqs": read[4].shape[0], **limits}
            batch = AttentionBatch(**sizes | dict(zip(_LISTS, read[3:], strict=True)))
            keys, values, out = changed
            backend.run(backend.plan(batch), read[0], read[1], read[2], KVCache(keys, values), out)

        made = new_like(q, q.shape, q.dtype)
        return apply(self.attention.session, work, [*cache, made], [q, k, v, *lists])[2]


class RotaryEmbedding(Layer):
    """Rotates queries and keys in place. `settings`: config.json's `rope_scaling` or `rope_parameters`."""

    def __init__(
        self, context: LayerContext, head_dim: int, settings: Mapping[str, Any], *, neox: bool = True
    ) -> None:
        super().__init__()
        table = rotary_table(settings, head_dim, context.model.max_model_len)
        self._table = context.session.platform.from_host(table)
        self._session, self._head_dim, self._neox = context.session, head_dim, neox

    def forward(
        self, q: paddle.Tensor, k: paddle.Tensor, positions: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        session, table, options = self._session, self._table, (self._head_dim, self._neox)

        def work(changed: list[Tensor], read: list[Tensor]) -> None:
            session.ops.fused_rotary_position_encoding(*changed, read[0], table, *options)

        q, k = apply(session, work, [q, k], [positions])
        return q, k
