"""Dense linear layers of a Qwen3-0.6B: fd-cpu beside torch and beside what the machine can do at most.

    python benchmarks/bench_linear.py [--dtypes bfloat16,float32] [--rows 1,8,512] [--shapes qkv,o]
                                      [--no-torch] [--out benchmarks/results/linear-NAME.json]

Weights rotate through at least 256 MiB, so that every call reads them from memory. Ours and torch's
bursts of calls alternate in this process, on as many threads as it may use processors; the ceilings (memory
reads in four streams a thread; float32 multiply-adds) are measured between them, and the best of the whole
run counts. `share` = the larger of (weight bytes / read ceiling) and (flops / multiply-add ceiling), over
our best time; medians are recorded too. On a busy machine only the best times mean anything.
"""

from __future__ import annotations

import argparse
import json
import platform as machine
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ceilings import Ceilings, machine_facts
from fd_cpu import library
from fd_cpu.platform import CPUPlatform
from fd_cpu.quant import packed_spec

from fd_core.api import dtype as dt
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy

SHAPES = {
    "qkv": (1024, 4096),
    "o": (2048, 1024),
    "gate_up": (1024, 6144),
    "down": (3072, 1024),
    "head": (1024, 151936),
}  # name -> (K, N)
POOL = 256 << 20  # bytes of weights that one cell walks through
BURST = 4
SETTLE = 0.005  # seconds; idle threads of either side spin for less
PLATFORM = CPUPlatform()


@dataclass
class Times:
    """Seconds of single calls."""

    values: list[float] = field(default_factory=list)

    def add(self, call: Callable[[], object]) -> None:
        start = time.perf_counter()
        call()
        self.values.append(time.perf_counter() - start)

    @property
    def best(self) -> float:
        return min(self.values)

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass
class Row:
    """One cell of the table; times in microseconds, rates in GB/s and GFLOP/s."""

    shape: str
    rows: int
    dtype: str
    ours_us: float
    ours_median_us: float
    torch_us: float
    torch_median_us: float
    gigabytes_s: float
    gigaflops: float
    share: float = 0.0

    def rate(self, ceilings: Ceilings) -> None:
        """Our share of the nearer limit, by the ceilings known so far."""
        self.share = max(self.gigabytes_s * 1e9 / ceilings.read, self.gigaflops * 1e9 / ceilings.fma)


def weights(shape: str, kind: dt.DType) -> list[Tensor]:
    """Enough copies of one random weight [N, K] to fill the pool, each in memory of its own."""
    depth, columns = SHAPES[shape]
    spec = TensorSpec((columns, depth), kind)
    values = np.random.default_rng(0).standard_normal(spec.shape, np.float32) / np.float32(depth**0.5)
    source = from_numpy(values.astype(kind.numpy()))
    copies = []
    for _ in range(max(1, -(-POOL // spec.nbytes))):
        copies.append(PLATFORM.empty(spec))
        copies[-1].copy_from(source)
    return copies


def ours(plain: list[Tensor], rows: int) -> Iterator[Callable[[], object]]:
    """Calls that walk through the packed copies; float32 activations, as the engine runs."""
    depth, columns = plain[0].shape[1], plain[0].shape[0]
    x = from_numpy(np.random.default_rng(1).standard_normal((rows, depth), np.float32))
    out = from_numpy(np.empty((rows, columns), np.float32))
    packed = []
    for one in plain:
        packed.append(PLATFORM.empty(packed_spec(one.spec)))
        library.pack_linear_weight(one, packed[-1])
    kernel = library.linear_packed
    while True:
        for one in packed:
            yield lambda w=one: kernel(x, w, None, out)


def theirs(plain: list[Tensor], rows: int) -> Iterator[Callable[[], object]]:
    """torch's F.linear over the plain copies, activations of the weights' type."""
    import torch

    torch.set_num_threads(library.thread_count())
    tensors = [torch.from_dlpack(one) for one in plain]
    x = torch.randn(rows, tensors[0].shape[1]).to(tensors[0].dtype)
    while True:
        for one in tensors:
            yield lambda w=one: torch.nn.functional.linear(x, w)


def burst(times: Times, calls: Iterator[Callable[[], object]]) -> None:
    """A few calls in a row once the other side's threads have gone to sleep; the first is not counted."""
    time.sleep(SETTLE)
    next(calls)()
    for _ in range(BURST):
        times.add(next(calls))


def measure(args: argparse.Namespace, ceilings: Ceilings, plain: list[Tensor], rows: int) -> list[Times]:
    """[ours, torch]: alternating bursts until the time is up, one at least."""
    times = [Times(), Times()]
    mine = ours(plain, rows)
    other = None if args.no_torch else theirs(plain, rows)
    stop = time.perf_counter() + args.seconds
    while time.perf_counter() < stop or not times[0].values:
        burst(times[0], mine)
        ceilings.measure()
        if other:
            burst(times[1], other)
    return times


def cell(args: argparse.Namespace, ceilings: Ceilings, shape: str, plain: list[Tensor], rows: int) -> Row:
    mine, other = measure(args, ceilings, plain, rows)
    flops, size = 2 * rows * plain[0].numel, plain[0].nbytes
    return Row(
        shape,
        rows,
        plain[0].dtype.name,
        ours_us=mine.best * 1e6,
        ours_median_us=mine.median * 1e6,
        torch_us=other.best * 1e6 if other.values else 0.0,
        torch_median_us=other.median * 1e6 if other.values else 0.0,
        gigabytes_s=size / mine.best / 1e9,
        gigaflops=flops / mine.best / 1e9,
    )


def show(row: Row) -> None:
    print(
        f"{row.shape:8} {row.rows:4} {row.dtype:9} {row.ours_us:10.0f} ({row.ours_median_us:8.0f})"
        f" {row.torch_us:10.0f} ({row.torch_median_us:8.0f}) {row.torch_us / row.ours_us:6.2f}"
        f" {row.gigabytes_s:6.1f} {row.gigaflops:8.0f} {row.share:6.0%}",
        flush=True,
    )


def facts(args: argparse.Namespace) -> dict[str, Any]:
    versions = {"python": machine.python_version(), "numpy": np.__version__}
    if not args.no_torch:
        import torch

        versions["torch"] = torch.__version__
    return {**machine_facts(), "versions": versions, "seconds_per_cell": args.seconds}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtypes", default="bfloat16,float16,float32")
    parser.add_argument("--rows", default="1,4,8,16,64,512")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--seconds", type=float, default=1.0, help="per cell")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse()
    ceilings = Ceilings()
    ceilings.measure(16)
    heads = ("shape", "rows", "dtype", "ours us", "(median)", "torch us", "(median)", "ratio")
    print(
        "{:8} {:4} {:9} {:>10} {:>10} {:>10} {:>10} {:>6}".format(*heads),
        "  GB/s of       GFLOP/s of   share",
    )
    table = []
    for name in args.dtypes.split(","):
        for shape in args.shapes.split(","):
            plain = weights(shape, dt.dtype(name))
            for rows in map(int, args.rows.split(",")):
                table.append(cell(args, ceilings, shape, plain, rows))
                table[-1].rate(ceilings)
                show(table[-1])
    finish(args, ceilings, table)


def finish(args: argparse.Namespace, ceilings: Ceilings, table: list[Row]) -> None:
    found = {"read_gb_s": ceilings.read / 1e9, "fma_gflop_s": ceilings.fma / 1e9}
    print("ceilings:", ", ".join(f"{name} {value:.1f}" for name, value in found.items()))
    for row in table:
        row.rate(ceilings)
    if args.out:
        args.out.write_text(
            json.dumps(
                {"facts": facts(args), "ceilings": found, "rows": [asdict(r) for r in table]}, indent=1
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
