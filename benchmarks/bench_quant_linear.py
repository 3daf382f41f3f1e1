"""Quantised linear layers of a Qwen3-0.6B: each method beside 16 bit and beside what the machine can do.

    python benchmarks/bench_quant_linear.py [--methods wint8,w8a8] [--rows 1,8,512] [--shapes qkv,o]
                                            [--out benchmarks/results/quant-linear-NAME.json]

Weights rotate through at least 256 MiB, so that every call reads them from memory; the methods' bursts
alternate in this process. `share` = the larger of (weight bytes / read ceiling) and (operations / the
ceiling of the arithmetic in use: float32 multiply-adds, or int8 dot products for the a8 methods), over
our time. Minima everywhere.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_linear import POOL, SHAPES, Times, burst
from ceilings import Ceilings, machine_facts
from fd_cpu.platform import CPUPlatform
from fd_cpu.quant import PackedLinear
from fd_cpu.quant_integer import METHODS

from fd_core.api import dtype as dt
from fd_core.api.quant import LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, from_numpy

PLATFORM = CPUPlatform()
ALL: dict[str, type[QuantMethod]] = {"none": PackedLinear, **{m.name: m for m in METHODS}}


@dataclass
class Row:
    """One cell of the table; `speedup` over 16 bit. Rates in GB/s and Gop/s."""

    shape: str
    rows: int
    method: str
    us: float
    speedup: float
    gigabytes_s: float
    gigaops: float
    share: float


def size(packed: Any) -> int:
    parts = packed if isinstance(packed, tuple) else (packed,)
    return sum(part.nbytes for part in parts)


def pack(name: str, weight: Tensor) -> tuple[QuantMethod, list[Any]]:
    """Enough copies of one packed weight to fill the pool."""
    method = ALL[name](PLATFORM.open(0), PLATFORM, None)
    columns, depth = weight.shape
    spec = LinearSpec(depth, columns, False, weight.dtype, dt.float32)
    first = method.process_weights(spec, {"weight": weight})
    count = max(1, -(-POOL // size(first)))
    return method, [first, *(method.process_weights(spec, {"weight": weight}) for _ in range(count - 1))]


def calls(method: QuantMethod, packed: list[Any], x: Tensor, out: Tensor) -> Iterator[Callable[[], object]]:
    while True:
        for one in packed:
            yield lambda w=one: method.apply(x, w, None, out)


def measure(args: argparse.Namespace, name: str, weight: Tensor) -> dict[int, tuple[float, int]]:
    """Best seconds of a call by number of rows, and the bytes of the packed weight."""
    method, packed = pack(name, weight)
    columns, depth = weight.shape
    found = {}
    for rows in map(int, args.rows.split(",")):
        x = from_numpy(np.random.default_rng(1).standard_normal((rows, depth), np.float32))
        times, turn = Times(), calls(method, packed, x, from_numpy(np.empty((rows, columns), np.float32)))
        for _ in range(args.bursts):
            burst(times, turn)
        found[rows] = (times.best, size(packed[0]))
    return found


def table(args: argparse.Namespace, ceilings: Ceilings) -> Iterator[Row]:
    for shape in args.shapes.split(","):
        depth, columns = SHAPES[shape]
        values = np.random.default_rng(0).standard_normal((columns, depth), np.float32)
        weight = from_numpy((values / np.float32(depth**0.5)).astype(dt.bfloat16.numpy()))
        base = measure(args, "none", weight)
        for name in args.methods.split(","):
            for _ in range(3):
                ceilings.measure_read(), ceilings.measure_fma(), ceilings.measure_dot()
            for rows, (seconds, nbytes) in measure(args, name, weight).items():
                operations = 2 * rows * depth * columns
                peak = ceilings.dot if name.endswith("a8") else ceilings.fma
                limit = max(nbytes / ceilings.read, operations / peak)
                rates = (nbytes / seconds / 1e9, operations / seconds / 1e9, limit / seconds)
                yield Row(shape, rows, name, seconds * 1e6, base[rows][0] / seconds, *rates)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default="none,wint8,w8a8,wint4,w4a8")
    parser.add_argument("--rows", default="1,4,8,16,64,512")
    parser.add_argument("--shapes", default="qkv,o,gate_up,down")
    parser.add_argument("--bursts", type=int, default=5)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args, ceilings = parse(), Ceilings()
    found = []
    print(f"{'shape':8} {'rows':>4} {'method':6} {'us':>9} {'x':>6} {'GB/s':>6} {'Gop/s':>6} share")
    for row in table(args, ceilings):
        found.append(asdict(row))
        print(
            f"{row.shape:8} {row.rows:4} {row.method:6} {row.us:9.0f} {row.speedup:6.2f}"
            f" {row.gigabytes_s:6.1f} {row.gigaops:6.0f} {row.share:5.0%}",
            flush=True,
        )
    print(
        f"read {ceilings.read / 1e9:.1f} GB/s, fma {ceilings.fma / 1e9:.0f}, dot {ceilings.dot / 1e9:.0f}"
    )
    if args.out:
        limits = {"read": ceilings.read, "fma": ceilings.fma, "dot": ceilings.dot}
        facts = {**machine_facts(), "ceilings": limits}
        args.out.write_text(json.dumps({"facts": facts, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
