"""Sampling over a vocabulary on one GPU, beside torch.

    python benchmarks/cuda/bench_sampling.py [--json FILE] [--only NAME]

Calls are captured in CUDA graphs over rotated inputs (together larger than the second-level cache), so
that launch gaps and cached data do not count; medians of ten replays. The rate counts the logits once
(twice where probabilities are written) and stands beside the rate at which torch sums a large tensor.
torch samples the way engines on top of it do: `topk` where there is a top-k, a `sort` for top-p alone.
Logits are normal with a standard deviation of 3.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fd_cuda import library
from timing import Call, timed

VOCAB, ROTATED = 151936, 256 << 20


class Step:
    """Tensors of one step over `rows` rows; what the calls write is shared by all of them."""

    def __init__(self, rows: int, vocab: int, dtype: torch.dtype) -> None:
        make = torch.full
        self.rows, self.vocab = rows, vocab
        self.logits = (3 * torch.randn(rows, vocab, device="cuda")).to(dtype)
        self.probs = torch.empty_like(self.logits)
        self.out = torch.zeros(rows, dtype=torch.int64, device="cuda")
        self.temperature = make((rows,), 0.8, device="cuda")
        self.min_p = make((rows,), 0.0, device="cuda")
        self.seed = torch.arange(rows, device="cuda")
        self.history = torch.randint(vocab, (rows, 1000), device="cuda")

    def filters(self, top_k: int, top_p: float) -> tuple[torch.Tensor, ...]:
        top_ks = torch.full((self.rows,), top_k, dtype=torch.int64, device="cuda")
        return top_ks, torch.full((self.rows,), top_p, device="cuda"), self.min_p


def argmax(s: Step) -> tuple[Call, Call]:
    kernel = library.function("argmax")
    return lambda: kernel(s.logits, s.out), lambda: s.logits.argmax(-1)


def softmax(s: Step) -> tuple[Call, Call]:
    kernel = library.function("temperature_softmax")
    return lambda: kernel(s.logits, s.temperature, s.probs), lambda: (s.logits / 0.8).softmax(-1)


def torch_sample(s: Step, top_k: int, top_p: float) -> torch.Tensor:
    scaled = s.logits / 0.8
    if not top_k and top_p >= 1:
        return torch.multinomial(scaled.softmax(-1), 1)
    values, ids = scaled.topk(top_k) if top_k else scaled.sort(-1, descending=True)
    probs = values.softmax(-1)
    if top_p < 1:
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0)
    return ids.gather(-1, torch.multinomial(probs, 1))


def fused(top_k: int, top_p: float) -> Callable[[Step], tuple[Call, Call]]:
    def make(s: Step) -> tuple[Call, Call]:
        kernel, filters = library.function("sample_from_logits"), s.filters(top_k, top_p)
        args = (s.logits, s.temperature, *filters, s.seed, s.seed, s.out)
        return lambda: kernel(*args), lambda: torch_sample(s, top_k, top_p)

    return make


def two_ops(top_k: int, top_p: float) -> Callable[[Step], tuple[Call, Call]]:
    def make(s: Step) -> tuple[Call, Call]:
        first, second = library.function("temperature_softmax"), library.function("sample_top_k_top_p")
        filters = s.filters(top_k, top_p)

        def run() -> None:
            first(s.logits, s.temperature, s.probs)
            second(s.probs, *filters, s.seed, s.seed, s.out)

        return run, lambda: torch_sample(s, top_k, top_p)

    return make


def logprobs(s: Step) -> tuple[Call, Call]:
    kernel = library.function("top_logprobs")
    own, rank = torch.empty(s.rows, device="cuda"), torch.empty_like(s.seed)
    ids = torch.empty(s.rows, 20, dtype=torch.int64, device="cuda")
    top = torch.empty(s.rows, 20, device="cuda")
    return (
        lambda: kernel(s.logits, s.out, 20, own, rank, ids, top),
        lambda: s.logits.log_softmax(-1).topk(20),
    )


def penalties(s: Step) -> tuple[Call, Call]:
    kernel = library.function("get_token_penalty_multi_scores")
    none = torch.empty(s.rows, 0, dtype=torch.int64, device="cuda")
    zero, one = torch.zeros_like(s.seed), torch.ones(s.rows, device="cuda")
    half, eos = one / 2, torch.tensor([2], device="cuda")
    scores = (one, half, half, one)
    args = (s.history, none, zero, s.logits, *scores, none, zero, zero, zero, eos)

    def theirs() -> None:
        counts = torch.zeros_like(s.logits)
        counts.scatter_add_(1, s.history, torch.ones_like(s.history, dtype=torch.float32))
        s.logits.sub_(counts * 0.5 + (counts > 0) * 0.5)

    return lambda: kernel(*args), theirs


@dataclass(frozen=True)
class Cell:
    name: str
    make: Callable[[Step], tuple[Call, Call]]
    rows: int
    vocab: int = VOCAB
    dtype: torch.dtype = torch.float32
    passes: int = 1


CELLS = [Cell("argmax", argmax, n) for n in (64, 1)]
CELLS += [Cell("argmax", argmax, n, 128256, t) for n in (64, 1) for t in (torch.bfloat16, torch.float32)]
CELLS += [Cell("softmax", softmax, n, passes=2) for n in (64, 1)]
for count in (1, 8, 64, 256):
    CELLS += [Cell("top-k 50, top-p 0.9", fused(50, 0.9), count)]
CELLS += [Cell("top-k 50, top-p 0.9, in two ops", two_ops(50, 0.9), n) for n in (64, 1)]
CELLS += [Cell("top-p 0.9", fused(0, 0.9), n) for n in (64, 1)]
CELLS += [Cell("top-k 1000", fused(1000, 1.0), n) for n in (64, 1)]
CELLS += [Cell("temperature", fused(0, 1.0), n) for n in (64, 1)]
CELLS += [Cell("20 log-probabilities", logprobs, n) for n in (64, 1)]
CELLS += [Cell("penalties, 1000 tokens", penalties, 64)]


def measure(cell: Cell) -> dict[str, Any]:
    size = cell.rows * cell.vocab * cell.dtype.itemsize
    count = max(2, min(64, -(-ROTATED // size)))
    steps = [Step(cell.rows, cell.vocab, cell.dtype) for _ in range(count)]
    ours, theirs = zip(*(cell.make(step) for step in steps), strict=True)
    mine, peer = timed(list(ours)), timed(list(theirs))
    kind = str(cell.dtype).removeprefix("torch.")
    return {
        "step": cell.name, "shape": f"{cell.rows}x{cell.vocab}", "dtype": kind, "us": round(mine, 1),
        "TB/s": round(cell.passes * size / mine * 1e-6, 2), "torch_us": round(peer, 1),
        "times_torch": round(peer / mine, 1),
    }  # fmt: skip


def read_rate() -> float:
    """TB/s at which torch sums 1 GiB."""
    x = torch.empty(1 << 28, device="cuda")
    return x.numel() * 4 / timed([x.sum]) * 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "python": platform.python_version(), "read_TB/s": round(read_rate(), 2), "cells": [],
    }  # fmt: skip
    print({k: v for k, v in report.items() if k != "cells"})
    for cell in CELLS:
        if args.only in cell.name:
            report["cells"].append(measure(cell))
            print("  ".join(f"{v!s:>12}" for v in report["cells"][-1].values()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
