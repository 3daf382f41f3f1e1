"""The Qwen3 layer stack in plain PyTorch, with the parameter names of the published format."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The model's dimensions, under the names config.json uses."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 7
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    def config(self) -> dict:
        return asdict(self)


class Norm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


def rope_table(shape: Shape, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of shape (length, head_dim), the two halves alike."""
    powers = torch.arange(0, shape.head_dim, 2, device=device).float() / shape.head_dim
    angles = torch.arange(length, device=device).float()[:, None] / shape.rope_theta**powers
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    left, right = x.float().chunk(2, -1)
    return (x * table[0] + torch.cat([-right, left], -1) * table[1]).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention with normalised queries and keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads = shape.num_attention_heads, shape.num_key_value_heads
        self.head_dim, width = shape.head_dim, shape.hidden_size
        self.q_proj = nn.Linear(width, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, width, bias=False)
        self.q_norm = Norm(self.head_dim, shape.rms_norm_eps)
        self.k_norm = Norm(self.head_dim, shape.rms_norm_eps)

    def split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, self.head_dim)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        q = self.q_norm(self.split(self.q_proj(x), self.heads)).transpose(1, 2)
        k = self.k_norm(self.split(self.k_proj(x), self.kv_heads)).transpose(1, 2)
        v = self.split(self.v_proj(x), self.kv_heads).transpose(1, 2)
        q, k = rotate(q, table), rotate(k, table)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Feed(nn.Module):
    """The gated feed-forward layer (SwiGLU)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = Feed(shape)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), table)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3(nn.Module):
    """Token ids in, next-token logits out; input and output embeddings are tied."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.apply(self.start)

    @staticmethod
    def start(module: nn.Module) -> None:
        """Draw initial weights; layers that write to the residual stream start at zero."""
        if isinstance(module, nn.Embedding | nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, Attention):
            nn.init.zeros_(module.o_proj.weight)
        if isinstance(module, Feed):
            nn.init.zeros_(module.down_proj.weight)

    def forward(self, ids: Tensor) -> Tensor:
        table = rope_table(self.shape, ids.shape[1], ids.device)
        x = self.embed_tokens(ids)
        if torch.is_autocast_enabled(ids.device.type):
            x = x.to(torch.bfloat16)
        for layer in self.layers:
            x = layer(x, table)
        return F.linear(self.norm(x), self.embed_tokens.weight)

    def loss(self, ids: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats of ids[:, 1:] given what precedes each."""
        logits = self(ids[:, :-1]).float()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights in bfloat16 under their published names."""
        state = self.state_dict()
        return {f"model.{name}": value.bfloat16().cpu().contiguous() for name, value in state.items()}


@torch.no_grad()
def bits_per_byte(model: Qwen3, ids: Tensor, n_bytes: int, window: int = 1024) -> float:
    """Score a token stream in windows that overlap by half, and divide by its length in bytes.

    The first token is only context. Each window scores the tokens no earlier window scored, so
    each sees at least window / 2 tokens of context (the first window aside).
    """
    nats, scored = 0.0, 1
    for start in range(0, max(1, ids.numel() - window // 2), window // 2):
        piece = ids[start : start + window]
        fresh = start + piece.numel() - scored
        logits = model(piece[None, :-1]).float()[0, -fresh:]
        nats += F.cross_entropy(logits, piece[-fresh:], reduction="sum").item()
        scored += fresh
    return nats / math.log(2) / n_bytes
