"""The norms on one GPU, beside torch.

    python benchmarks/cuda/bench_norm.py [--json FILE] [--only NAME]

Calls are captured in CUDA graphs over rotated tensors (together larger than the second-level cache), so
that launch gaps and cached data do not count; medians of fifteen replays. The rate counts every row read
and written once and stands beside torch's copy in the same run. Kernels of a decode step are bound by
their launch: there the microseconds count, not the rate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fd_cuda import library
from timing import Call, Case, main

EPS = 1e-6


def _random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def rms_norm(rows: int, hidden: int) -> Case:
    def make() -> tuple[Call, Call]:
        kernel = library.function("rms_norm")
        x, w = _random(rows, hidden), _random(hidden)
        out = torch.empty_like(x)
        return lambda: kernel(x, w, EPS, out), lambda: F.rms_norm(x, (hidden,), w, EPS)

    return Case("rms_norm", f"{rows}x{hidden}", 4 * rows * hidden, make)


def fused_add_rmsnorm(rows: int, hidden: int) -> Case:
    def make() -> tuple[Call, Call]:
        kernel = library.function("fused_add_rmsnorm")
        x, residual, w = _random(rows, hidden), _random(rows, hidden), _random(hidden)

        def theirs() -> None:
            residual.add_(x)
            F.rms_norm(residual, (hidden,), w, EPS)

        return lambda: kernel(x, residual, w, EPS), theirs

    return Case("fused_add_rmsnorm", f"{rows}x{hidden}", 8 * rows * hidden, make)


def layer_norm(rows: int, hidden: int) -> Case:
    def make() -> tuple[Call, Call]:
        kernel = library.function("layer_norm")
        x, w, b = _random(rows, hidden), _random(hidden), _random(hidden)
        out = torch.empty_like(x)
        return lambda: kernel(x, w, b, EPS, out), lambda: F.layer_norm(x, (hidden,), w, b, EPS)

    return Case("layer_norm", f"{rows}x{hidden}", 4 * rows * hidden, make)


def qk_rmsnorm_fused(rows: int, q_heads: int, kv_heads: int, dim: int = 128) -> Case:
    q_size, kv_size = q_heads * dim, kv_heads * dim

    def make() -> tuple[Call, Call]:
        kernel = library.function("qk_rmsnorm_fused")
        qkv, wq, wk = _random(rows, q_size + 2 * kv_size), _random(dim), _random(dim)
        q = qkv[:, :q_size].view(rows, q_heads, dim)
        k = qkv[:, q_size : q_size + kv_size].view(rows, kv_heads, dim)

        def theirs() -> None:
            q.copy_(F.rms_norm(q, (dim,), wq, EPS))
            k.copy_(F.rms_norm(k, (dim,), wk, EPS))

        return lambda: kernel(qkv, wq, wk, EPS, q_size, kv_size, dim), theirs

    name = f"{rows} tokens, {q_heads}/{kv_heads}x{dim}"
    return Case("qk_rmsnorm_fused", name, 4 * rows * (q_size + kv_size), make)


CASES = [
    *(rms_norm(*shape) for shape in ((1, 4096), (64, 4096), (512, 4096), (4096, 8192), (16384, 1024))),
    *(fused_add_rmsnorm(*shape) for shape in ((1, 4096), (64, 4096), (512, 4096), (4096, 8192))),
    *(layer_norm(*shape) for shape in ((1, 1280), (4096, 1280), (4096, 8192))),
    *(qk_rmsnorm_fused(rows, 32, 8) for rows in (1, 64, 4096)),
]

if __name__ == "__main__":
    main("The norms on one GPU, beside torch.", CASES)
