"""ERNIE 4.5, dense (Baidu 2025)."""

from __future__ import annotations

from typing import ClassVar

from fd_core.layers.attention import Attention
from fd_core.layers.mlp import GatedMLP
from fd_core.models.decoder import DecoderLM


class Ernie4_5ForCausalLM(DecoderLM):
    """Llama with the rotation on neighbouring pairs, and one switch for every bias."""

    neox: ClassVar[bool] = False

    def attention(self, layer: int, prefix: str) -> Attention:
        bias = self.config.use_bias
        return self.make_attention(layer, prefix, qkv_bias=bias, o_bias=bias)

    def feed_forward(self, layer: int, prefix: str) -> GatedMLP:
        return self.make_mlp(prefix, bias=self.config.use_bias)
