"""Activations, rotary, cache writes and row copies on one GPU, beside torch.

    python benchmarks/cuda/bench_pointwise.py [--json FILE] [--only NAME]

As bench_norm.py. torch's side is what its users write: eager calls, several of them where the op is a
fusion (the rate counts what one fused pass must move).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from fd_cuda import library
from timing import Call, Case, main

Tensor = torch.Tensor
POSITIONS = 8192


def _random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def halves(op: str, rows: int, width: int, theirs: Callable[[Tensor, Tensor], Tensor]) -> Case:
    def make() -> tuple[Call, Call]:
        kernel = library.function(op)
        x, out = _random(rows, 2 * width), _random(rows, width)
        args = (x, None, out) if op == "swiglu" else (x, out)
        return lambda: kernel(*args), lambda: theirs(x[:, :width], x[:, width:])

    return Case(op, f"{rows}x{width}", 6 * rows * width, make)


def _silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _gelu_mul(gate: Tensor, up: Tensor) -> Tensor:
    return F.gelu(gate, approximate="tanh") * up


def _table() -> Tensor:
    angle = torch.outer(torch.arange(POSITIONS).double(), 10000.0 ** (-torch.arange(64).double() / 64))
    return torch.cat([angle.cos(), angle.sin()], 1).float().cuda()


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    a, b = x.chunk(2, -1)
    x.copy_(torch.cat([a * cos - b * sin, b * cos + a * sin], -1))


def rope(tokens: int, q_heads: int, kv_heads: int, dim: int = 128) -> Case:
    heads = q_heads + kv_heads

    def make() -> tuple[Call, Call]:
        kernel = library.function("fused_rotary_position_encoding")
        qkv, table = _random(tokens, heads + kv_heads, dim), _table()
        at = torch.randint(POSITIONS, (tokens,), device="cuda")
        q, k = qkv[:, :q_heads], qkv[:, q_heads:heads]

        def theirs() -> None:
            cos, sin = table[at][:, None].chunk(2, -1)
            _turn(q, cos, sin)
            _turn(k, cos, sin)

        return lambda: kernel(q, k, at, table, dim, True), theirs

    return Case(
        "fused_rotary_position_encoding", f"{tokens}, {q_heads}/{kv_heads}", 4 * tokens * heads * dim, make
    )


def rope_and_cache(tokens: int, q_heads: int, kv_heads: int, norm: bool, dim: int = 128) -> Case:
    heads = q_heads + kv_heads

    def make() -> tuple[Call, Call]:
        kernel = library.function("rope_and_cache")
        qkv, table = _random(tokens, (heads + kv_heads) * dim), _table()
        at = torch.randint(POSITIONS, (tokens,), device="cuda")
        keys, values = (_random(tokens // 64 + 1, kv_heads, 64, dim).transpose(1, 2) for _ in range(2))
        slots = torch.randperm(len(keys) * 64, device="cuda")[:tokens]
        weights = (_random(dim), _random(dim)) if norm else (None, None)
        parts = qkv.view(tokens, -1, dim)
        q, k, v = parts[:, :q_heads], parts[:, q_heads:heads], parts[:, heads:]

        def theirs() -> None:
            cos, sin = table[at][:, None].chunk(2, -1)
            for x, weight in ((q, weights[0]), (k, weights[1])):
                if weight is not None:
                    x.copy_(F.rms_norm(x, (dim,), weight, 1e-6))
                _turn(x, cos, sin)
            keys[slots // 64, slots % 64] = k
            values[slots // 64, slots % 64] = v

        return lambda: kernel(qkv, at, table, *weights, 1e-6, keys, values, slots, True), theirs

    name = f"{tokens}, {q_heads}/{kv_heads}" + (", norm" if norm else "")
    return Case("rope_and_cache", name, 2 * tokens * (2 * q_heads + 5 * kv_heads) * dim, make)


def cache_write(tokens: int, kv_heads: int, fp8: bool, dim: int = 128) -> Case:
    def make() -> tuple[Call, Call]:
        kernel = library.function("reshape_and_cache_flash")
        key, value = _random(tokens, kv_heads, dim), _random(tokens, kv_heads, dim)
        shape = (tokens // 64 + 1, 64, kv_heads, dim)
        kind = torch.uint8 if fp8 else torch.bfloat16
        keys, values = (torch.zeros(shape, dtype=kind, device="cuda") for _ in range(2))
        scales = [torch.ones(shape[:3], device="cuda") if fp8 else None for _ in range(2)]
        slots = torch.randperm(shape[0] * 64, device="cuda")[:tokens]

        def theirs() -> None:
            for x, pool, scale in ((key, keys, scales[0]), (value, values, scales[1])):
                flat = pool.view(-1, kv_heads, dim)
                if scale is None:
                    flat[slots] = x
                    continue
                size = x.abs().amax(-1).float() / 448
                scale.view(-1, kv_heads)[slots] = size
                flat[slots] = (x / size[..., None]).to(torch.float8_e4m3fn).view(torch.uint8)

        mode = "fp8_e4m3" if fp8 else "auto"
        return lambda: kernel(key, value, keys, values, slots, *scales, mode), theirs

    item = 3 if fp8 else 4
    return Case(
        "reshape_and_cache_flash",
        f"{tokens}, {kv_heads}x{dim}" + (" fp8" if fp8 else ""),
        2 * item * tokens * kv_heads * dim,
        make,
    )


def embedding(tokens: int, hidden: int) -> Case:
    def make() -> tuple[Call, Call]:
        kernel = library.function("embedding")
        table, out = _random(32768, hidden), _random(tokens, hidden)
        ids = torch.randint(32768, (tokens,), device="cuda")
        return lambda: kernel(ids, table, out), lambda: F.embedding(ids, table)

    return Case("embedding", f"{tokens}x{hidden}", 4 * tokens * hidden, make)


def gather(rows: int, picks: int, hidden: int) -> Case:
    def make() -> tuple[Call, Call]:
        kernel = library.function("gather_tokens")
        x, out = _random(rows, hidden), _random(picks, hidden)
        at = torch.randint(rows, (picks,), device="cuda")
        return lambda: kernel(x, at, out), lambda: x.index_select(0, at)

    return Case("gather_tokens", f"{picks} of {rows}x{hidden}", 4 * picks * hidden, make)


CASES = [
    *(halves("swiglu", rows, 14336, _silu_mul) for rows in (1, 64, 4096)),
    halves("gelu_tanh_and_mul", 4096, 14336, _gelu_mul),
    *(rope(tokens, 32, 8) for tokens in (1, 64, 4096)),
    *(rope_and_cache(tokens, 32, 8, norm) for tokens in (1, 64, 4096) for norm in (False, True)),
    *(cache_write(tokens, 8, fp8) for tokens in (1, 64, 4096) for fp8 in (False, True)),
    *(embedding(tokens, 4096) for tokens in (1, 64, 4096)),
    gather(512, 1, 4096),
    gather(4096, 64, 4096),
]

if __name__ == "__main__":
    main("Activations, rotary, cache writes and row copies on one GPU, beside torch.", CASES)
