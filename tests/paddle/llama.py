"""A Llama made of fd-core's Paddle layers, as a user would write it; run over hand-made batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from fd_core import ops
from fd_core import paddle as fd
from fd_core.models.config import ModelConfig


class MLP(paddle.nn.Layer):
    def __init__(self, context: Any, config: ModelConfig, prefix: str) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        names = [f"{prefix}.gate_proj", f"{prefix}.up_proj"]
        self.gate_up = fd.MergedColumnParallelLinear(
            context, hidden, [inner, inner], prefix=names, with_bias=bias
        )
        self.down = fd.RowParallelLinear(
            context, inner, hidden, prefix=f"{prefix}.down_proj", with_bias=bias
        )

    def forward(self, x: Any) -> Any:
        return self.down(ops.swiglu(self.gate_up(x), None))


class Block(paddle.nn.Layer):
    def __init__(self, context: Any, config: ModelConfig, layer: int, rotary: Any) -> None:
        super().__init__()
        prefix = f"model.layers.{layer}"
        hidden, eps, bias = config.hidden_size, config.rms_norm_eps, config.attention_bias
        sizes = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self.rotary = [rotary]  # shared, so not a sub-layer of every block
        self.norm = fd.RMSNorm(context, hidden, eps, f"{prefix}.input_layernorm")
        self.qkv = fd.QKVParallelLinear(
            context, hidden, *sizes, prefix=f"{prefix}.self_attn", with_bias=bias
        )
        self.attention = fd.Attention(context, layer, *sizes)
        width = config.num_attention_heads * config.head_dim
        self.out = fd.RowParallelLinear(
            context, width, hidden, prefix=f"{prefix}.self_attn.o_proj", with_bias=bias
        )
        self.post_norm = fd.RMSNorm(context, hidden, eps, f"{prefix}.post_attention_layernorm")
        if config.num_experts:
            experts = (config.moe_intermediate_size, config.num_experts, config.num_experts_per_tok)
            norm = config.norm_topk_prob
            self.mlp = fd.FusedMoE(context, hidden, *experts, norm_topk_prob=norm, prefix=f"{prefix}.mlp")
        else:
            self.mlp = MLP(context, config, f"{prefix}.mlp")

    def forward(self, x: Any, residual: Any, meta: Any) -> Any:
        q, k, v = self.qkv.heads(self.qkv(x))
        q, k = self.rotary[0](q, k, meta.positions)
        x = self.out(self.attention(q, k, v, meta))
        x, residual = self.post_norm(x, residual)
        return self.mlp(x), residual


class Llama(paddle.nn.Layer):
    def __init__(self, context: Any, config: ModelConfig) -> None:
        super().__init__()
        hidden, tied = config.hidden_size, config.tie_word_embeddings
        self.embed = fd.Embedding(context, config.vocab_size, hidden, "model.embed_tokens")
        rotary = fd.RotaryEmbedding(context, config.head_dim, config.rope)
        layers = range(config.num_hidden_layers)
        self.blocks = paddle.nn.LayerList([Block(context, config, layer, rotary) for layer in layers])
        self.norm = fd.RMSNorm(context, hidden, config.rms_norm_eps, "model.norm")
        name = "model.embed_tokens" if tied else "lm_head"
        self.head = fd.Linear(context, hidden, config.vocab_size, prefix=name, table=tied, name="lm_head")

    def forward(self, ids: Any, meta: Any) -> Any:
        residual = self.embed(ids)
        x = self.blocks[0].norm(residual)
        following = [*(block.norm for block in list(self.blocks)[1:]), self.norm]
        for i in range(len(following)):  # Paddle's tracer of sources wants plain loops
            x, residual = self.blocks[i](x, residual, meta)
            x, residual = following[i](x, residual)
        return self.head(x)


BLOCK = 8


def context_for(config: ModelConfig, **options: Any) -> Any:
    sizes = {"block_size": BLOCK, "max_num_tokens": 128, "max_model_len": config.max_model_len}
    return fd.make_context(config.dtype, **{**sizes, **options})


def new_caches(model: Llama, blocks: int = 32) -> list[Any]:
    return [block.attention.new_cache(blocks) for block in model.blocks]


def step(model: Llama, caches: list[Any], ids: Sequence[int], start: int) -> np.ndarray[Any, Any]:
    """Logits of `ids`, which follow `start` tokens of the one sequence; its blocks are in reverse order."""
    tensors, limits = inputs(ids, start)
    meta = fd.ForwardMeta(*tensors[1:], caches, *limits)
    return model(tensors[0], meta).astype("float32").numpy()


def inputs(ids: Sequence[int], start: int) -> tuple[list[Any], tuple[int, int]]:
    """Token ids and the lists of a step, in ForwardMeta's order, and its two limits."""
    stop = start + len(ids)
    table = np.arange(31, -1, -1, dtype=np.int32)[None]
    positions = np.arange(start, stop, dtype=np.int32)
    slots = table[0][positions // BLOCK].astype(np.int64) * BLOCK + positions % BLOCK
    arrays = (np.array([0, len(ids)], np.int32), np.array([stop], np.int32), table, slots, positions)
    first = np.array(ids, np.int32)
    return [paddle.to_tensor(array) for array in (first, *arrays)], (len(ids), stop)
