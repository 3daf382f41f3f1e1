"""Paged attention of fd-cpu beside torch's scaled_dot_product_attention and the machine's ceilings.

    python benchmarks/bench_attention.py [--dtypes bfloat16,float32] [--heads 32,8,128]
                                         [--no-torch] [--out benchmarks/results/attention-NAME.json]

Decode cells: one query per sequence over a cache in blocks of 64, in shuffled order; caches rotate
through at least 256 MiB, as the layers of a model do. Prefill cells: one prompt from nothing. Ours takes
float32 queries, as the engine runs; torch gets dense keys and values and queries of the cache's type,
and for decode the query heads of a group as the rows of one product, which is its fastest form.
Calls alternate in one process; the ceilings are the best of the whole run: torch's
threads spin on after a call, so what is measured right behind one is too low.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from bench_linear import Times, facts
from ceilings import Ceilings
from fd_cpu import library
from fd_cpu.platform import CPUPlatform

from fd_core.api import dtype as dt
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy

BLOCK = 64
POOL = 256 << 20  # bytes of keys and values that one decode cell walks through
PLATFORM = CPUPlatform()
Call = Callable[[], object]


@dataclass(frozen=True)
class Cell:
    """`batch` sequences of `queries` tokens each that end at `context` keys."""

    batch: int
    queries: int
    context: int
    heads: int
    kv_heads: int
    dim: int
    dtype: str

    @property
    def cache_bytes(self) -> int:
        return 2 * self.batch * self.context * self.kv_heads * self.dim * dt.dtype(self.dtype).itemsize

    @property
    def flops(self) -> int:
        pairs = self.queries * (2 * self.context - self.queries + 1) // 2
        return 4 * self.batch * pairs * self.heads * self.dim

    @property
    def copies(self) -> int:
        return -(-POOL // self.cache_bytes) if self.queries == 1 else 1

    @property
    def blocks(self) -> int:
        return self.batch * -(-self.context // BLOCK)


@dataclass
class Row:
    """Times in microseconds, rates in GB/s and GFLOP/s; shares of the ceilings measured beside."""

    batch: int
    queries: int
    context: int
    dtype: str
    ours_us: float
    ours_median_us: float
    torch_us: float
    torch_median_us: float
    gigabytes_s: float
    gigaflops: float
    read_ceiling: float
    fma_ceiling: float
    read_share: float
    fma_share: float


def pools(cell: Cell) -> list[tuple[Tensor, Tensor]]:
    """Head-major caches of random values, seen as the op wants them."""
    spec = TensorSpec((cell.blocks, cell.kv_heads, BLOCK, cell.dim), dt.dtype(cell.dtype))
    source = np.random.default_rng(0).standard_normal(spec.shape, np.float32).astype(spec.dtype.numpy())
    found = [PLATFORM.empty(spec) for _ in range(2 * cell.copies)]
    for one in found:
        one.copy_from(from_numpy(source))
    views = [one.permute(0, 2, 1, 3) for one in found]
    return list(zip(views[::2], views[1::2], strict=True))


def ours(cell: Cell) -> Iterator[Call]:
    tokens = cell.batch * cell.queries
    rng = np.random.default_rng(1)
    q = from_numpy(rng.standard_normal((tokens, cell.heads, cell.dim), np.float32))
    out = from_numpy(np.empty((tokens, cell.heads, cell.dim), np.float32))
    cu = from_numpy(np.arange(0, tokens + 1, cell.queries, dtype=np.int32))
    lengths = from_numpy(np.full(cell.batch, cell.context, np.int32))
    table = from_numpy(rng.permutation(cell.blocks).astype(np.int32).reshape(cell.batch, -1))
    step = (cu, lengths, table, None, cell.dim**-0.5, 0, 0.0, out)
    kernel = library.paged_attention
    for key, value in itertools.cycle(pools(cell)):
        yield lambda k=key, v=value: kernel(q, k, v, *step)


def theirs(cell: Cell) -> Iterator[Call]:
    import torch

    torch.set_num_threads(library.thread_count())
    kind = getattr(torch, cell.dtype)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    group, decode = cell.heads // cell.kv_heads, cell.queries == 1
    heads, rows = (cell.kv_heads, group) if decode else (cell.heads, cell.queries)
    q = torch.randn(cell.batch, heads, rows, cell.dim).to(kind)
    shape = (cell.batch, cell.kv_heads, cell.context, cell.dim)
    one = torch.randn(shape).to(kind)
    caches = [(one.clone(), one.clone()) for _ in range(cell.copies)]
    for key, value in itertools.cycle(caches):
        yield lambda k=key, v=value: sdpa(q, k, v, is_causal=not decode, enable_gqa=not decode)


def measure(cell: Cell, ceilings: Ceilings, seconds: float, torch: bool) -> list[Times]:
    """[ours, torch]: alternating calls until the time is up, three rounds at least."""
    times = [Times(), Times()]
    makers = [ours(cell), *([theirs(cell)] if torch else [])]
    for maker in makers:
        next(maker)()
    stop = perf_counter() + seconds
    while perf_counter() < stop or len(times[0].values) < 3:
        for maker, taken in zip(makers, times, strict=False):
            taken.add(next(maker))
        if len(times[0].values) % 4 == 1:
            ceilings.measure(1)
    return times


def row(cell: Cell, mine: Times, other: Times, ceilings: Ceilings) -> Row:
    bandwidth, peak = ceilings.read, ceilings.fma
    return Row(
        cell.batch,
        cell.queries,
        cell.context,
        cell.dtype,
        ours_us=mine.best * 1e6,
        ours_median_us=mine.median * 1e6,
        torch_us=other.best * 1e6 if other.values else 0.0,
        torch_median_us=other.median * 1e6 if other.values else 0.0,
        gigabytes_s=cell.cache_bytes / mine.best / 1e9,
        gigaflops=cell.flops / mine.best / 1e9,
        read_ceiling=bandwidth / 1e9,
        fma_ceiling=peak / 1e9,
        read_share=cell.cache_bytes / mine.best / bandwidth,
        fma_share=cell.flops / mine.best / peak,
    )


HEAD = (
    "batch x queries @ keys dtype     ours us (median)  torch us (median)  ratio  GB/s share  GFLOP/s share"
)


def show(r: Row) -> None:
    cell = f"{r.batch:2} x {r.queries:5} @ {r.context:6} {r.dtype:9}"
    mine = f"{r.ours_us:9.0f} ({r.ours_median_us:9.0f})"
    other = f"{r.torch_us:9.0f} ({r.torch_median_us:9.0f}) {r.torch_us / r.ours_us:6.2f}"
    read = f"{r.gigabytes_s:6.1f}/{r.read_ceiling:5.1f} {r.read_share:4.0%}"
    print(
        cell, mine, other, read, f"{r.gigaflops:6.0f}/{r.fma_ceiling:5.0f} {r.fma_share:4.0%}", flush=True
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--heads", default="32,8,128", help="query heads, key heads, head dimension")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--contexts", default="1024,4096,16384", help="decode; empty for none")
    parser.add_argument("--prompts", default="512,2048", help="prefill; empty for none")
    parser.add_argument("--seconds", type=float, default=1.0, help="per cell")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    def ints(text: str) -> list[int]:
        return [int(part) for part in text.split(",") if part]

    heads = ints(args.heads)
    for name in args.dtypes.split(","):
        for batch, context in itertools.product(ints(args.batches), ints(args.contexts)):
            yield Cell(batch, 1, context, *heads, name)
        for prompt in ints(args.prompts):
            yield Cell(1, prompt, prompt, *heads, name)


def main() -> None:
    args = parse()
    ceilings = Ceilings()
    ceilings.measure(16)
    print(HEAD)
    table = []
    for cell in cells(args):
        times = measure(cell, ceilings, args.seconds, not args.no_torch)
        table.append(row(cell, *times, ceilings))
        show(table[-1])
    if args.out:
        about = facts(args) | {"heads": args.heads, "block_size": BLOCK}
        args.out.write_text(
            json.dumps({"facts": about, "rows": [asdict(r) for r in table]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
