"""Llama 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024)."""

from __future__ import annotations

from fd_core.layers.attention import Attention
from fd_core.layers.mlp import GatedMLP
from fd_core.models.decoder import DecoderLM


class LlamaForCausalLM(DecoderLM):
    """Pre-norm decoder: RMSNorm, rotary positions on half-split pairs, grouped keys, SwiGLU."""

    def attention(self, layer: int, prefix: str) -> Attention:
        bias = self.config.attention_bias
        return self.make_attention(layer, prefix, qkv_bias=bias, o_bias=bias)

    def feed_forward(self, layer: int, prefix: str) -> GatedMLP:
        return self.make_mlp(prefix, bias=self.config.mlp_bias)
