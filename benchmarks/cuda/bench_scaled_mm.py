"""Float8 and int8 products with scales on one GPU, beside torch._scaled_mm and torch._int_mm.

    python benchmarks/cuda/bench_scaled_mm.py [--json FILE] [--only NAME]

Calls are captured in CUDA graphs over rotated weights (together larger than the second-level cache), so
that launch gaps and cached data do not count; medians of fifteen replays. `row`: a scale for each row and
column; `tensor`: one for each side; `layer`: method wfp8afp8, which quantises bfloat16 activations first,
beside torch's product of activations that are quantised already. torch's int8 product leaves int32 sums.
The share is that of the rate which torch's float8 product of 8192 x 8192 x 8192 reached on an H200
(1434 TFLOP/s; int8: 921).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from fd_cuda import library
from timing import Call, copy_rate, record, timed

#: (outputs, inputs)
SHAPES = [(4096, 4096), (14336, 4096)]
ROWS = (1, 8, 64, 512, 4096)
CEILING = {"float8": 1434.0, "int8": 921.0}
#: Bytes of a case's rotated weights together.
ROTATED = 256 << 20
F8 = torch.float8_e4m3fn


def _quantised(rows: int, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, depth, device="cuda").bfloat16()
    codes, scales = torch.empty(rows, depth, device="cuda", dtype=F8), torch.empty(rows, device="cuda")
    library.function("dynamic_per_token_scaled_fp8_quant")(codes, x, scales, 0.0)
    return codes, scales


def _outputs(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16) for _ in "ab")  # type: ignore[return-value]


def _torch(a: torch.Tensor, b: torch.Tensor, scales: Sequence[torch.Tensor], out: torch.Tensor) -> Call:
    """torch._scaled_mm with a scale for each row and column, or (without dimensions) for each side."""
    rows, columns = (
        s if s.ndim == 0 else s.view(shape) for s, shape in zip(scales, ((-1, 1), (1, -1)), strict=True)
    )
    types = {"out_dtype": torch.bfloat16, "out": out}
    return partial(torch._scaled_mm, a, b.T, scale_a=rows, scale_b=columns, **types)


def float8(by_row: bool, rows: int, columns: int, depth: int) -> tuple[Call, Call]:
    """The op, and torch's."""
    (a, a_scales), (b, b_scales) = _quantised(rows, depth), _quantised(columns, depth)
    if not by_row:
        a_scales, b_scales = (torch.ones((), device="cuda") for _ in "ab")
    out, theirs = _outputs(rows, columns)
    run, ours = library.function("cutlass_scaled_mm"), [s.view(-1) for s in (a_scales, b_scales)]
    return lambda: run(out, a, b, *ours, None), _torch(a, b, (a_scales, b_scales), theirs)


def layer(rows: int, columns: int, depth: int) -> tuple[Call, Call]:
    """The method, and torch's product alone."""
    x = torch.randn(rows, depth, device="cuda").bfloat16()
    (a, a_scales), (b, b_scales) = _quantised(rows, depth), _quantised(columns, depth)
    out, theirs = _outputs(rows, columns)
    run = library.function("linear_fp8_dynamic")
    return lambda: run(x, b, b_scales, None, out), _torch(a, b, (a_scales, b_scales), theirs)


def int8(rows: int, columns: int, depth: int) -> tuple[Call, Call]:
    """The op with scales and a bfloat16 result; torch's int32 sums (it wants more than 16 rows)."""
    a, b = (torch.randint(-127, 128, (n, depth), device="cuda", dtype=torch.int8) for n in (rows, columns))
    a_scales, b_scales = torch.rand(rows, device="cuda"), torch.rand(columns, device="cuda")
    out, run, turned = _outputs(rows, columns)[0], library.function("cutlass_scaled_mm"), b.T
    wide = torch.cat([a, a.new_zeros(max(0, 17 - rows), depth)])
    sums = torch.empty(len(wide), columns, device="cuda", dtype=torch.int32)
    return (
        lambda: run(out, a, b, a_scales, b_scales, None),
        lambda: torch._int_mm(wide, turned, out=sums),
    )


MAKERS: dict[str, Callable[[int, int, int], tuple[Call, Call]]] = {
    "float8 row": partial(float8, True),
    "float8 tensor": partial(float8, False),
    "float8 layer": layer,
    "int8 row": int8,
}


@dataclass(frozen=True)
class Row:
    """Microseconds of a call; of weights read; torch's time over ours."""

    case: str
    us: float
    tbps: float
    tflops: float
    share: float
    torch_us: float
    ratio: float


def cases() -> Iterator[tuple[str, int, int, int]]:
    for kind in MAKERS:
        for columns, depth in SHAPES:
            for rows in ROWS:
                yield kind, rows, columns, depth


def measure(kind: str, rows: int, columns: int, depth: int) -> Row:
    sets = max(4, min(32, ROTATED // (columns * depth)))
    calls = [MAKERS[kind](rows, columns, depth) for _ in range(sets)]
    ours, theirs = (timed([pair[i] for pair in calls]) for i in range(2))
    tflops = 2 * rows * columns * depth / ours / 1e6
    return Row(
        f"{kind} M={rows} {columns}x{depth}",
        round(ours, 2),
        round(columns * depth / ours / 1e6, 3),
        round(tflops, 1),
        round(tflops / CEILING[kind.split(maxsplit=1)[0]], 3),
        round(theirs, 2),
        round(theirs / ours, 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Products with scales beside torch.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="part of a case's kind")
    args = parser.parse_args()
    copied, rows = copy_rate(), []
    print(f"{torch.cuda.get_device_name()}; torch copies 64 MiB at {copied:.2f} TB/s")
    print(f"{'case':36} {'us':>8} {'TB/s':>6} {'TFLOP/s':>8} {'share':>6} {'torch us':>9} {'ratio':>6}")
    for case in (case for case in cases() if args.only in case[0]):
        row = measure(*case)
        rows.append(asdict(row))
        print(
            f"{row.case:36} {row.us:8.2f} {row.tbps:6.2f} {row.tflops:8.1f} {row.share:6.1%} "
            f"{row.torch_us:9.2f} {row.ratio:6.2f}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(record(copied, rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
