"""Qwen3, dense (Yang et al. 2025)."""

from __future__ import annotations

from fd_core.layers.attention import Attention
from fd_core.layers.mlp import GatedMLP
from fd_core.models.decoder import DecoderLM


class Qwen3ForCausalLM(DecoderLM):
    """Llama with every query and key head normed before the rotation, and a head size of its own."""

    def attention(self, layer: int, prefix: str) -> Attention:
        bias, eps = self.config.attention_bias, self.config.rms_norm_eps
        return self.make_attention(layer, prefix, qkv_bias=bias, o_bias=bias, qk_norm=eps)

    def feed_forward(self, layer: int, prefix: str) -> GatedMLP:
        return self.make_mlp(prefix)
