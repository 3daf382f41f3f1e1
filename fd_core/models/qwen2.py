"""Qwen2 and Qwen2.5 (Yang et al. 2024)."""

from __future__ import annotations

from fd_core.layers.attention import Attention
from fd_core.layers.mlp import GatedMLP
from fd_core.models.decoder import DecoderLM


class Qwen2ForCausalLM(DecoderLM):
    """Llama with a bias on queries, keys and values, and a sliding window in the upper layers if asked."""

    def attention(self, layer: int, prefix: str) -> Attention:
        return self.make_attention(layer, prefix, qkv_bias=True)

    def feed_forward(self, layer: int, prefix: str) -> GatedMLP:
        return self.make_mlp(prefix)
