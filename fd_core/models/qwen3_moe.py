"""Qwen3, mixture of experts (Yang et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from fd_core.layers.attention import Attention
from fd_core.layers.moe import ExpertSizes, MixtureOfExperts
from fd_core.models.config import ModelConfig
from fd_core.models.decoder import DecoderLM, FeedForward


class Qwen3MoeForCausalLM(DecoderLM):
    """Qwen3 whose feed-forward is a mixture of experts, except in the layers that stay dense.

    A sliding window, if used, is that of all layers.
    """

    has_experts: ClassVar[bool] = True

    @classmethod
    def unsupported(cls, config: ModelConfig) -> Iterable[str]:
        yield from super().unsupported(config)
        if not 0 < config.num_experts_per_tok <= config.num_experts:
            have = config.num_experts_per_tok
            yield f"num_experts_per_tok: want 1..{config.num_experts} (num_experts), have {have}"
        if config.moe_intermediate_size < 1:
            yield f"moe_intermediate_size: want at least 1, have {config.moe_intermediate_size}"

    def attention(self, layer: int, prefix: str) -> Attention:
        bias, eps = self.config.attention_bias, self.config.rms_norm_eps
        return self.make_attention(layer, prefix, qkv_bias=bias, o_bias=bias, qk_norm=eps)

    def window(self, layer: int) -> int | None:
        return self.config.sliding_window if self.config.use_sliding_window else None

    def feed_forward(self, layer: int, prefix: str) -> FeedForward:
        config = self.config
        if layer in config.mlp_only_layers or (layer + 1) % config.decoder_sparse_step:
            return self.make_mlp(prefix)
        sizes = ExpertSizes(
            hidden=config.hidden_size,
            intermediate=config.moe_intermediate_size,
            experts=config.num_experts,
            chosen=config.num_experts_per_tok,
            normalise=config.norm_topk_prob,
        )
        return MixtureOfExperts(self.context, self.scratch, sizes, prefix)
