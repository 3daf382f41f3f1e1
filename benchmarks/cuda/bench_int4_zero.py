"""Int4 weights with zero points beside those without, on one GPU.

    python benchmarks/cuda/bench_int4_zero.py [--json FILE] [--only NAME]

Timed as in bench_linear.py, beside linear_int4 in the column of torch. The rate counts the weights as
they are stored: codes, scales, zero points.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from bench_linear import BLOCK
from fd_cuda import library
from fd_cuda.quant import int4_scale_spec, int4_spec
from fd_cuda.quant_given import step_spec
from timing import Call, Case, main

GROUPS = (64, 128)
ROWS = (1, 8, 16, 32, 64, 128, 2048)


def _random(spec: Any) -> torch.Tensor:
    """Bytes of any value, scales that are numbers."""
    if spec.dtype.name == "bfloat16":
        return torch.rand(spec.shape, device="cuda").bfloat16()
    return torch.randint(0, 120, spec.shape, device="cuda", dtype=torch.uint8)


def _pair(group: int, rows: int, columns: int, depth: int) -> tuple[Call, Call]:
    x = torch.randn(rows, depth, device="cuda").bfloat16()
    ours, plain = (torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    codes = int4_spec(columns, depth, group)
    zero = [_random(codes), _random(step_spec(columns, codes.shape[1]))]
    symmetric = [_random(codes), _random(int4_scale_spec(columns, depth, group))]
    first, second = library.function("linear_int4_zero"), library.function("linear_int4")
    return lambda: first(x, *zero, None, ours), lambda: second(x, *symmetric, None, plain)


def cases() -> Iterator[Case]:
    for group in GROUPS:
        for rows in ROWS:
            for n, k in BLOCK.values() if rows <= 16 else [(4096, 4096), (28672, 4096)]:
                size = int((0.5 + 3 / group) * n * k)
                yield Case(f"g{group}", f"M={rows} {n}x{k}", size, partial(_pair, group, rows, n, k))


if __name__ == "__main__":
    main("Int4 with zero points beside without.", cases())
