"""Linear layers on one GPU, beside torch (cuBLAS) on 16-bit weights.

    python benchmarks/cuda/bench_linear.py [--json FILE] [--only NAME]

Calls are captured in CUDA graphs over rotated weights (together larger than the second-level cache), so
that launch gaps and cached data do not count; medians of fifteen replays. The rate counts the weights as
they are stored, and stands beside torch's copy in the same run. torch's time is always that of bfloat16
weights, also beside quantised ones. `block`: the four layers of a Llama-3-8B decoder block back to back,
their inputs not computed anew: what the linear layers of a decode step cost is 32 blocks and a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from fd_cuda import library
from fd_cuda.quant import int4_scale_spec, int4_spec, int8_spec
from timing import Call, Case, main

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec

#: (outputs, inputs) of Llama-3-8B.
BLOCK = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
HEAD = (128256, 4096)
SINGLE = [*BLOCK.values(), (14336, 4096), HEAD]
#: Between decoding one sequence and prefill.
BATCHES = (9, 16, 17, 32, 64, 96, 128)
GROUP = 128
#: The call for (x, weight, out).
Maker = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Call]


def _empty(spec: TensorSpec) -> torch.Tensor:
    return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype.name), device="cuda")


def _packed(
    kernel: str, packer: str, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, *specs: TensorSpec
) -> Call:
    packed = [_empty(spec) for spec in specs]
    library.function(packer)(weight, *packed)
    run = library.function(kernel)
    return lambda: run(x, *packed, None, out)


def plain(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> Call:
    run = library.function("linear_fixed_weight")
    return lambda: run(x, weight, None, out)


def wint8(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> Call:
    columns, depth = weight.shape
    specs = int8_spec(columns, depth), TensorSpec((columns,), dt.float32)
    return _packed("linear_int8", "pack_int8_weight", x, weight, out, *specs)


def wint4(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> Call:
    columns, depth = weight.shape
    specs = int4_spec(columns, depth, GROUP), int4_scale_spec(columns, depth, GROUP)
    return _packed("linear_int4", "pack_int4_weight", x, weight, out, *specs)


def w8a8(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> Call:
    columns, depth = weight.shape
    specs = TensorSpec((columns, depth), dt.int8), TensorSpec((columns,), dt.float32)
    return _packed("linear_int8_dynamic", "pack_int8_rows", x, weight, out, *specs)


MAKERS: dict[str, Maker] = {"bf16": plain, "wint8": wint8, "wint4": wint4, "w8a8": w8a8}
#: Bytes of a weight in each, for the rates.
BYTES = {"bf16": 2.0, "wint8": 1.0, "wint4": 0.5 + 2 / GROUP, "w8a8": 1.0}


def _layer(kind: str, rows: int, columns: int, depth: int) -> tuple[Call, Call]:
    x = torch.randn(rows, depth, device="cuda").bfloat16()
    weight = (torch.randn(columns, depth, device="cuda") / depth**0.5).bfloat16()
    out, theirs = (torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return MAKERS[kind](x, weight, out), lambda: torch.mm(x, weight.T, out=theirs)


def _in_turn(calls: list[Call]) -> None:
    for call in calls:
        call()


def _block(kind: str, rows: int) -> tuple[Call, Call]:
    pairs = [_layer(kind, rows, *shape) for shape in BLOCK.values()]
    return tuple(partial(_in_turn, [pair[i] for pair in pairs]) for i in range(2))  # type: ignore[return-value]


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
    for kind in ("wint8", "wint4"):
        for n, k in ((4096, 4096), (14336, 4096), (4096, 14336)):
            for rows in BATCHES:
                make = partial(_layer, kind, rows, n, k)
                yield Case(kind, f"M={rows} {n}x{k}", int(BYTES[kind] * n * k), make)
    for kind, size in BYTES.items():
        for n, k in ((4096, 4096), (28672, 4096)):
            make = partial(_layer, kind, 2048, n, k)
            yield Case(kind, f"M=2048 {n}x{k}", int(size * n * k), make)


if __name__ == "__main__":
    main("Linear layers beside torch.", cases())
