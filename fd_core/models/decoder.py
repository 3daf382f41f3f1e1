"""The pre-norm decoder that every architecture here is a variation of."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

from fd_core.api import dtype as dt
from fd_core.api.attention import AttentionBackend, AttentionBatch, AttentionSpec, KVCache, KVLayout
from fd_core.api.tensor import Tensor
from fd_core.layers.attention import Attention, Rotary
from fd_core.layers.attention_select import explained, select_backend
from fd_core.layers.buffers import Buffer
from fd_core.layers.context import ModelContext
from fd_core.layers.embedding import Embedding, SharedEmbedding, own_table
from fd_core.layers.linear import Linear
from fd_core.layers.mlp import GatedMLP
from fd_core.layers.norm import RMSNorm
from fd_core.layers.residual import Residual
from fd_core.layers.rotary import rotary_table
from fd_core.layers.scratch import Scratch
from fd_core.layers.weight import Weighted
from fd_core.models.base import CausalLM
from fd_core.models.config import ModelConfig
from fd_core.models.limits import common_limits, dense_only
from fd_core.quantization.config import HEAD

log = logging.getLogger("fd.engine")


class FeedForward(Protocol):
    """What follows attention: dense or a mixture of experts."""

    def layers(self) -> Iterator[Weighted]: ...

    def __call__(self, residual: Residual, norm: RMSNorm) -> None: ...


class Block:
    """h = x + attention(norm(x)); h + mlp(norm(h))."""

    def __init__(self, norm: RMSNorm, attention: Attention, post_norm: RMSNorm, mlp: FeedForward) -> None:
        self.norm = norm
        self.attention = attention
        self.post_norm = post_norm
        self.mlp = mlp

    def layers(self) -> Iterator[Weighted]:
        yield self.norm
        yield from self.attention.layers()
        yield self.post_norm
        yield from self.mlp.layers()

    def __call__(self, residual: Residual, positions: Tensor, plan: Any, cache: KVCache) -> None:
        self.attention(residual, self.norm, positions, plan, cache)
        self.mlp(residual, self.post_norm)


class DecoderLM(CausalLM):
    """Embedding, blocks, norm, head, with the checkpoint names that all of these families share.

    A family says how it differs: `neox` (pairing of the rotation), `has_experts`, its attention and its
    feed-forward.
    """

    neox: ClassVar[bool] = True
    has_experts: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, context: ModelContext) -> None:
        super().__init__(config, context)
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.scratch = Scratch(context.platform, context.max_num_tokens)
        self._backends: dict[AttentionSpec, AttentionBackend] = {}
        self._rotary = self._make_rotary()
        self._x = self.scratch.buffer("x", (hidden,), context.activation_dtype)
        self._residual = self.scratch.buffer("residual", (hidden,), context.activation_dtype)
        self.head = self._make_head()
        self.embed = self._make_embedding()
        self.blocks = [self._block(layer) for layer in range(config.num_hidden_layers)]
        self.norm = RMSNorm(context, hidden, eps, "model.norm")
        rows, platform = context.max_num_seqs, context.platform
        self._selected = Buffer.empty(platform, (rows, hidden), context.activation_dtype)
        self._logits = Buffer.empty(platform, (rows, config.vocab_size), dt.float32)

    # -- what a family fills in ------------------------------------------------------------------

    @abstractmethod
    def attention(self, layer: int, prefix: str) -> Attention:
        """The attention of a layer (see `make_attention`)."""

    @abstractmethod
    def feed_forward(self, layer: int, prefix: str) -> FeedForward:
        """The feed-forward block of a layer (see `make_mlp`)."""

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer in tokens, its own included; None = all."""
        return self.config.window(layer)

    @classmethod
    def unsupported(cls, config: ModelConfig) -> Iterable[str]:
        yield from common_limits(config)
        if not cls.has_experts:
            yield from dense_only(config)

    @classmethod
    def ignored_weights(cls, config: ModelConfig) -> Sequence[str]:
        """Tables that old exports carry and, with a shared table, the head's copy."""
        return ("*.rotary_emb.inv_freq", *(["lm_head.weight"] if config.tie_word_embeddings else []))

    # -- building --------------------------------------------------------------------------------

    def _make_rotary(self) -> Rotary:
        config, context = self.config, self.context
        table = rotary_table(config.rope, config.head_dim, context.max_model_len)
        device_table = context.platform.from_host(table)
        return Rotary(context, device_table, config.head_dim, self.neox)

    def _make_head(self) -> Linear:
        config = self.config
        tied = config.tie_word_embeddings
        name = "model.embed_tokens" if tied else HEAD
        return Linear(self.context, config.hidden_size, [(name, config.vocab_size)], table=tied, name=HEAD)

    def _make_embedding(self) -> Embedding:
        config = self.config
        where = (self.context, config.vocab_size, config.hidden_size, "model.embed_tokens")
        if not config.tie_word_embeddings:
            return own_table(*where)
        return SharedEmbedding(*where, self.head) if self.head.has_lookup else Embedding(*where)

    def _block(self, layer: int) -> Block:
        prefix = f"model.layers.{layer}"
        hidden, eps = self.config.hidden_size, self.config.rms_norm_eps
        return Block(
            RMSNorm(self.context, hidden, eps, f"{prefix}.input_layernorm"),
            self.attention(layer, f"{prefix}.self_attn"),
            RMSNorm(self.context, hidden, eps, f"{prefix}.post_attention_layernorm"),
            self.feed_forward(layer, f"{prefix}.mlp"),
        )

    def make_attention(self, layer: int, prefix: str, **options: Any) -> Attention:
        """Attention with this configuration's heads and window; `options` are `Attention`'s."""
        backend = self._backend(self._attention_spec(layer))
        hidden = self.config.hidden_size
        return Attention(self.context, self.scratch, hidden, backend, self._rotary, prefix, **options)

    def make_mlp(self, prefix: str, *, bias: bool = False) -> GatedMLP:
        config = self.config
        sizes = (config.hidden_size, config.intermediate_size)
        return GatedMLP(self.context, self.scratch, *sizes, prefix, bias)

    def _attention_spec(self, layer: int) -> AttentionSpec:
        config, context = self.config, self.context
        window = self.window(layer)
        if window is not None and window >= context.max_model_len:
            window = None
        return AttentionSpec(
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            scale=config.head_dim**-0.5,
            dtype=context.activation_dtype,
            cache_dtype=context.cache_dtype,
            block_size=context.block_size,
            window=window,
        )

    def _backend(self, spec: AttentionSpec) -> AttentionBackend:
        """One backend, and so one plan per step, for all layers of equal specification."""
        if spec not in self._backends:
            context = self.context
            chosen, judged = select_backend(
                context.attention_backends, spec, context.device, context.attention_backend
            )
            log.info("attention by %s (%s)", chosen.name, explained(judged))
            self._backends[spec] = chosen(spec, context.device, context.ops)
        return self._backends[spec]

    # -- what the engine calls -------------------------------------------------------------------

    def attention_specs(self) -> list[AttentionSpec]:
        return [block.attention.backend.spec for block in self.blocks]

    def kv_layouts(self) -> list[KVLayout]:
        backends = [block.attention.backend for block in self.blocks]
        return [type(backend).kv_layout(backend.spec) for backend in backends]

    def layers_with_weights(self) -> list[Weighted]:
        blocks = [layer for block in self.blocks for layer in block.layers()]
        return [self.embed, *blocks, self.norm, self.head]

    def forward(
        self, input_ids: Tensor, positions: Tensor, batch: AttentionBatch, caches: Sequence[KVCache]
    ) -> Tensor:
        n = batch.num_tokens
        residual = Residual(self._residual.rows(n), self._x.rows(n))
        plans = {backend: backend.plan(batch) for backend in self._backends.values()}
        self.embed(input_ids, residual.total)
        for block, cache in zip(self.blocks, caches, strict=True):
            block(residual, positions, plans[block.attention.backend], cache)
        return residual.normed(self.norm)

    def run_block(
        self,
        index: int,
        x: Tensor,
        residual: Tensor,
        positions: Tensor,
        batch: AttentionBatch,
        cache: KVCache,
    ) -> None:
        """One block alone on the sum so far, `residual`; `x` receives the part still to be added."""
        block = self.blocks[index]
        plan = block.attention.backend.plan(batch)
        block(Residual(residual, x, fuse=False), positions, plan, cache)

    def compute_logits(self, hidden: Tensor, indices: Tensor | None) -> Tensor:
        rows = hidden
        if indices is not None:
            rows = self._selected.rows(indices.shape[0])
            self.context.ops.gather_tokens(hidden, indices, rows)
        logits = self._logits.rows(rows.shape[0])
        self.head(rows, logits)
        return logits
