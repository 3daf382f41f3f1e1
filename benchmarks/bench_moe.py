"""Experts of a Qwen3-30B-A3B layer on the CPU: every method beside torch and beside the machine's ceilings.

    python benchmarks/bench_moe.py [--methods none,wint8,w8a8,wint4,w4a8,op] [--tokens 1,8,512]
                                   [--no-torch] [--out benchmarks/results/moe-NAME.json]

A call is both products and SwiGLU over the rows of all tokens, 8 random experts of 128 each, other ones in
every call: at few tokens weights come from memory. `none`: 16-bit panels, what the engine runs; `op`:
moe_expert_ffn over row-major 16-bit weights; torch: a loop over the experts in use, bfloat16. The methods'
calls alternate in this process. `share` = the larger of (bytes of experts in use / read ceiling) and
(operations / the ceiling of the arithmetic in use: float32 multiply-adds, or int8 dot products for the a8
methods), over our best time; ceilings are measured between the calls. On a busy machine only the best times
mean anything, and of calls longer than a scheduler's turn not even these: there, with FD_CPU_THREADS=1,
`--cpu-time` counts the thread's processor time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from bench_linear import SETTLE, Times
from bench_quant_linear import ALL, PLATFORM
from ceilings import Ceilings, machine_facts
from fd_cpu import library

from fd_core.api import dtype as dt
from fd_core.api.quant import ExpertSpec
from fd_core.api.tensor import Tensor, from_numpy

SPEC = ExpertSpec(2048, 768, 128, dt.bfloat16, dt.float32, "mlp.experts")
CHOSEN = 8
DRAWN = 4  # experts with weights of their own; the others are copies in memory of theirs

#: Rows [R, hidden] and the rows of each expert -> a call that leaves its results anywhere.
Make = Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], Callable[[], object]]


@dataclass
class Row:
    """One cell of the table; `speedup` of the best time over torch's. Rates in GB/s and Gop/s."""

    tokens: int
    method: str
    us: float
    median_us: float
    speedup: float | None
    gigabytes_s: float
    gigaops: float
    share: float


def weights(expert: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(expert)
    return {
        name: (
            rng.standard_normal((m.out_features, m.in_features), np.float32) / m.in_features**0.5
        ).astype(dt.bfloat16.numpy())
        for name, m in SPEC.matrices.items()
    }


def by_method(name: str) -> tuple[Make, int]:
    """Calls, and the bytes of one expert."""
    experts = ALL[name](PLATFORM.open(0), PLATFORM, None).experts()
    assert experts is not None
    packed = {n: PLATFORM.empty(one) for n, one in experts.packed_weights(SPEC).items()}
    for e in range(DRAWN):
        experts.pack(SPEC, e, {n: from_numpy(w) for n, w in weights(e).items()}, packed)
    for e in range(DRAWN, SPEC.experts):
        for stack in packed.values():
            stack.select(e).copy_from(stack.select(e % DRAWN))

    def make(x: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> Callable[[], object]:
        owners = np.repeat(np.arange(SPEC.experts, dtype=np.int32), counts)
        rows, ends, out = (from_numpy(a) for a in (x, np.cumsum(counts), np.empty_like(x)))
        return lambda: experts.apply(rows, ends, from_numpy(owners), SPEC, packed, out)

    return make, sum(stack.nbytes for stack in packed.values()) // SPEC.experts


def by_op() -> tuple[Make, int]:
    sizes = {"gate_up_proj": (2048, 1536), "down_proj": (768, 2048)}
    stacks = {n: np.empty((SPEC.experts, *size), dt.bfloat16.numpy()) for n, size in sizes.items()}
    for e in range(DRAWN):
        for name, weight in weights(e).items():
            stacks[name][e::DRAWN] = weight.T
    up, down = map(from_numpy, stacks.values())

    def make(x: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> Callable[[], object]:
        rows, ends, out = (from_numpy(a) for a in (x, np.cumsum(counts), np.empty_like(x)))
        nothing: list[Tensor | None] = [None] * 5
        return lambda: library.moe_expert_ffn(rows, ends, up, down, *nothing, "none", False, out)

    return make, 3 * 2 * SPEC.hidden * SPEC.intermediate


def by_torch() -> tuple[Make, int]:
    import torch
    from torch.nn.functional import linear, silu

    torch.set_num_threads(library.thread_count())
    drawn = [
        [torch.from_numpy(w.astype("f4")).bfloat16() for w in weights(e).values()] for e in range(DRAWN)
    ]
    experts = [[w.clone() for w in drawn[e % DRAWN]] for e in range(SPEC.experts)]

    @torch.no_grad()
    def run(x: Any, used: list[tuple[int, int, int]]) -> None:
        for e, first, end in used:
            gate, up = linear(x[first:end], experts[e][0]).chunk(2, dim=-1)
            linear(silu(gate) * up, experts[e][1])

    def make(x: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> Callable[[], object]:
        ends, rows = np.cumsum(counts).tolist(), torch.from_numpy(x).bfloat16()
        used = [(e, end - int(n), end) for e, (n, end) in enumerate(zip(counts, ends, strict=True)) if n]
        return lambda: run(rows, used)

    return make, 3 * 2 * SPEC.hidden * SPEC.intermediate


def chosen(rng: np.random.Generator, tokens: int) -> np.ndarray[Any, Any]:
    """Rows of each expert, when every token goes through CHOSEN of them."""
    picks = [rng.choice(SPEC.experts, CHOSEN, replace=False) for _ in range(tokens)]
    return np.bincount(np.concatenate(picks), minlength=SPEC.experts)


@dataclass
class Cell:
    """Times of one method at one number of tokens, and the bytes of the experts in its best call."""

    times: Times
    nbytes: float = 0.0


def measure(
    args: argparse.Namespace, made: dict[str, tuple[Make, int]], tokens: int, peak: Ceilings
) -> dict[str, Cell]:
    """By method; in a round all have the same experts."""
    rng, cells = np.random.default_rng(tokens), {name: Cell(Times()) for name in made}
    x = rng.standard_normal((tokens * CHOSEN, SPEC.hidden), np.float32)
    clock = time.thread_time if args.cpu_time else time.perf_counter
    for _ in range(args.rounds * (4 if tokens <= 8 else 1)):
        counts = chosen(rng, tokens)
        peak.measure_read(), peak.measure_fma(), peak.measure_dot()
        for name, (make, nbytes) in made.items():
            call, cell = make(x, counts), cells[name]
            time.sleep(SETTLE)
            start = clock()
            call()
            cell.times.values.append(clock() - start)
            if cell.times.values[-1] == cell.times.best:
                cell.nbytes = nbytes * int((counts > 0).sum())
    return cells


def table(args: argparse.Namespace, ceilings: Ceilings) -> Iterator[Row]:
    made = {name: by_op() if name == "op" else by_method(name) for name in args.methods.split(",")}
    if not args.no_torch:
        made["torch"] = by_torch()
    for tokens in map(int, args.tokens.split(",")):
        cells = measure(args, made, tokens, ceilings)
        operations = 2 * 3 * tokens * CHOSEN * SPEC.hidden * SPEC.intermediate
        theirs = cells["torch"].times.best if "torch" in cells else None
        for name, cell in cells.items():
            best, rate = cell.times.best, ceilings.dot if name.endswith("a8") else ceilings.fma
            limit = max(cell.nbytes / ceilings.read, operations / rate)
            yield Row(
                tokens, name, best * 1e6, float(np.median(cell.times.values)) * 1e6,
                theirs / best if theirs else None, cell.nbytes / best / 1e9, operations / best / 1e9,
                limit / best,
            )  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default="none,wint8,w8a8,wint4,w4a8,op")
    parser.add_argument("--tokens", default="1,8,64,512")
    parser.add_argument(
        "--rounds", type=int, default=15, help="calls of each; four times as many to 8 tokens"
    )
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="processor time; one thread only")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args, ceilings = parse(), Ceilings()
    if args.cpu_time and library.thread_count() != 1:
        raise SystemExit("--cpu-time: want FD_CPU_THREADS=1: the time of one thread is counted")
    found = []
    print(
        f"{'tokens':>6} {'method':6} {'us':>9} {'median':>9} {'x torch':>7} {'GB/s':>6} {'Gop/s':>6} share"
    )
    for row in table(args, ceilings):
        found.append(asdict(row))
        print(
            f"{row.tokens:6} {row.method:6} {row.us:9.0f} {row.median_us:9.0f} {row.speedup or 0:7.2f}"
            f" {row.gigabytes_s:6.1f} {row.gigaops:6.0f} {row.share:5.0%}",
            flush=True,
        )
    limits = {"read": ceilings.read, "fma": ceilings.fma, "dot": ceilings.dot}
    print(", ".join(f"{name} {value / 1e9:.0f} G/s" for name, value in limits.items()))
    if args.out:
        asked = {"tokens": args.tokens, "rounds": args.rounds, "cpu_time": args.cpu_time}
        facts = {**machine_facts(), "torch": version("torch"), "ceilings": limits, **asked}
        args.out.write_text(json.dumps({"facts": facts, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
