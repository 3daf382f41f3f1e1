"""Linear layers on one GPU, beside torch (cuBLAS) on 16-bit weights.

    python benchmarks/cuda/bench_linear.py [--json FILE] [--only NAME]

Calls are captured in CUDA graphs over rotated weights (together larger than the second-level cache), so
that launch gaps and cached data do not count; medians of fifteen replays. The rate counts the weights as
they are stored, and stands beside torch's copy in the same run. torch's time is always that of bfloat16
weights, also beside quantised ones. `block`: the four layers of a Llama-3-8B decoder block back to back,
their inputs not computed anew: what the linear layers of a decode step cost is 32 blocks and a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from fd_cuda import library
from fd_cuda.quant import WHOLE, int4_scale_spec, int4_spec, int8_spec
from timing import Call, Case, main

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec

#: (outputs, inputs) of Llama-3-8B.
BLOCK = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
HEAD = (128256, 4096)
SINGLE = [*BLOCK.values(), (14336, 4096), HEAD]
#: Between decoding one sequence and prefill.
BATCHES = (9, 16, 17, 24, 32, 64, 96, 128)
#: Inputs under a scale of int4 codes; WHOLE: one for each output.
GROUP = 128
GROUPS = {"wint4": GROUP, "wint4-64": 64, "wint4-row": WHOLE}


def _empty(spec: TensorSpec) -> torch.Tensor:
    return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype.name), device="cuda")


#: The export that multiplies, and the one that makes codes and scales of a plain weight.
KERNELS = {
    "bf16": ("linear_fixed_weight", ""),
    "wint8": ("linear_int8", "pack_int8_weight"),
    **dict.fromkeys(GROUPS, ("linear_int4", "pack_int4_weight")),
    "w8a8": ("linear_int8_dynamic", "pack_int8_rows"),
}


def _specs(kind: str, columns: int, depth: int) -> tuple[TensorSpec, TensorSpec]:
    if kind in GROUPS:
        return int4_spec(columns, depth, GROUPS[kind]), int4_scale_spec(columns, depth, GROUPS[kind])
    codes = int8_spec(columns, depth) if kind == "wint8" else TensorSpec((columns, depth), dt.int8)
    return codes, TensorSpec((columns,), dt.float32)


def packed(kind: str, weight: torch.Tensor) -> list[torch.Tensor]:
    """What the kernel of `kind` gets in the place of `weight`."""
    packer = KERNELS[kind][1]
    if not packer:
        return [weight]
    made = [_empty(spec) for spec in _specs(kind, *weight.shape)]
    library.function(packer)(weight, *made)
    return made


def product(kind: str, x: torch.Tensor, weight: list[torch.Tensor], out: torch.Tensor) -> Call:
    """`weight`: packed."""
    run = library.function(KERNELS[kind][0])
    return lambda: run(x, *weight, None, out)


#: Bytes of a weight in each, for the rates.
BYTES = {"bf16": 2.0, "wint8": 1.0, "wint4": 0.5 + 2 / GROUP, "w8a8": 1.0}
BATCH_BYTES = {"wint8": 1.0, "wint4": 0.5 + 2 / GROUP, "wint4-64": 0.5 + 2 / 64, "wint4-row": 0.5}


def _layer(kind: str, rows: int, columns: int, depth: int) -> tuple[Call, Call]:
    x = torch.randn(rows, depth, device="cuda").bfloat16()
    weight = (torch.randn(columns, depth, device="cuda") / depth**0.5).bfloat16()
    out, theirs = (torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return product(kind, x, packed(kind, weight), out), lambda: torch.mm(x, weight.T, out=theirs)


def _in_turn(calls: list[Call]) -> None:
    for call in calls:
        call()


def _block(kind: str, rows: int) -> tuple[Call, Call]:
    pairs = [_layer(kind, rows, *shape) for shape in BLOCK.values()]
    return tuple(partial(_in_turn, [pair[i] for pair in pairs]) for i in range(2))  # type: ignore[return-value]


def _batches() -> Iterator[Case]:
    for kind, size in BATCH_BYTES.items():
        for n, k in BLOCK.values():
            for rows in BATCHES:
                make = partial(_layer, kind, rows, n, k)
                yield Case(kind, f"M={rows} {n}x{k}", int(size * n * k), make)


def cases() -> Iterator[Case]:
    """Decode batches of every kind, larger ones of packed weights, then prefill."""
    for kind, size in BYTES.items():
        count = sum(n * k for n, k in BLOCK.values())
        for rows in (1, 8, 64):
            yield Case(kind, f"M={rows} block", int(size * count), partial(_block, kind, rows))
    for kind, size in BYTES.items():
        for n, k in SINGLE:
            for rows in (1, 8, 64) if kind == "bf16" else (1,):
                make = partial(_layer, kind, rows, n, k)
                yield Case(kind, f"M={rows} {n}x{k}", int(size * n * k), make)
    yield from _batches()
    for kind, size in BYTES.items():
        for n, k in ((4096, 4096), (28672, 4096)):
            make = partial(_layer, kind, 2048, n, k)
            yield Case(kind, f"M=2048 {n}x{k}", int(size * n * k), make)


if __name__ == "__main__":
    main("Linear layers beside torch.", cases())
