"""Sampling over a vocabulary of 151,936: fd-cpu beside torch, calls alternating in one process.

    python benchmarks/bench_sampling.py [--rows 1,8,32] [--threads N]
                                        [--out benchmarks/results/sampling-NAME.json]

Both sides get the same logits and as many threads as the process has processors. torch samples the way
engines on top of it do: `topk` where there is a top-k, a full `sort` where there is top-p alone. Times
are medians and minima in microseconds of a whole step over all rows; `speedup` is of the minima. The
logits are in the caches, as they are behind a language-model head. `load` is the machine's load average
(more than `threads` means that others ran too): other work delays a team of OpenMP threads by whole
time slices, so on a busy machine compare with `--threads 1`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform as machine
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fd_cpu import library
from fd_cpu.platform import processor_name

from fd_core.api.tensor import Tensor, from_numpy

VOCAB = 151936
HISTORY = 1000
Call = Callable[[], object]


def column(rows: int, value: float, kind: type) -> Tensor:
    return from_numpy(np.full(rows, value, kind))


class Ours:
    """Calls of the compiled ops over persistent tensors."""

    def __init__(self, logits: np.ndarray[Any, Any], history: np.ndarray[Any, Any]) -> None:
        n = len(logits)
        self.logits, self.probs = from_numpy(logits), from_numpy(np.empty_like(logits))
        self.edited = from_numpy(logits.copy())
        self.temperature = column(n, 0.8, np.float32)
        self.keys = (column(n, 7, np.int64), column(n, 3, np.int64))
        self.out = column(n, 0, np.int64)
        self.history = from_numpy(history)
        self.n = n

    def argmax(self) -> Call:
        call = library.argmax
        return lambda: call(self.logits, self.out)

    def sample(self, top_k: int, top_p: float) -> Call:
        softmax, draw = library.temperature_softmax, library.sample_top_k_top_p
        filters = (
            column(self.n, top_k, np.int64),
            column(self.n, top_p, np.float32),
            column(self.n, 0, np.float32),
        )

        def run() -> None:
            softmax(self.logits, self.temperature, self.probs)
            draw(self.probs, *filters, *self.keys, self.out)

        return run

    def logprobs(self) -> Call:
        call = library.top_logprobs
        own, rank = column(self.n, 0, np.float32), column(self.n, 0, np.int64)
        ids, top = (from_numpy(np.empty((self.n, 20), kind)) for kind in (np.int64, np.float32))
        return lambda: call(self.logits, self.out, 20, own, rank, ids, top)

    def penalties(self) -> Call:
        call = library.get_token_penalty_multi_scores
        zero, one = column(self.n, 0, np.int64), column(self.n, 1, np.float32)
        empty = from_numpy(np.empty((self.n, 0), np.int64))
        eos = from_numpy(np.array([2]))
        half = column(self.n, 0.5, np.float32)
        return lambda: call(
            self.history, empty, zero, self.edited, one, half, half, one, empty, zero, zero, zero, eos
        )


class Torch:
    """The same steps in torch's own operators."""

    def __init__(self, logits: np.ndarray[Any, Any], history: np.ndarray[Any, Any]) -> None:
        self.logits = torch.from_numpy(logits)
        self.edited = self.logits.clone()
        self.history = torch.from_numpy(history)

    def argmax(self) -> Call:
        return lambda: self.logits.argmax(-1)

    def sample(self, top_k: int, top_p: float) -> Call:
        return lambda: self._sample(top_k, top_p)

    def _sample(self, top_k: int, top_p: float) -> torch.Tensor:
        scaled = self.logits / 0.8
        if not top_k and top_p >= 1:
            return torch.multinomial(scaled.softmax(-1), 1)
        values, ids = scaled.topk(top_k) if top_k else scaled.sort(-1, descending=True)
        probs = values.softmax(-1)
        if top_p < 1:
            probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0)
        return ids.gather(-1, torch.multinomial(probs, 1))

    def logprobs(self) -> Call:
        return lambda: self.logits.log_softmax(-1).topk(20)

    def penalties(self) -> Call:
        def run() -> None:
            counts = torch.zeros_like(self.edited).scatter_add_(
                1, self.history, torch.ones(self.history.shape)
            )
            self.edited.sub_(counts * 0.5 + (counts > 0) * 0.5)

        return run


CELLS: dict[str, Callable[[Any], Call]] = {
    "greedy": lambda side: side.argmax(),
    "temperature": lambda side: side.sample(0, 1.0),
    "temperature, top-k 50, top-p 0.9": lambda side: side.sample(50, 0.9),
    "temperature, top-p 0.9": lambda side: side.sample(0, 0.9),
    "log-probabilities, 20 best": lambda side: side.logprobs(),
    "frequency and presence penalties, 1000 tokens": lambda side: side.penalties(),
}


def measure(ours: Call, theirs: Call, seconds: float) -> dict[str, float]:
    """Alternating calls for about `seconds`; at least five of each."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    ours(), theirs()
    while time.perf_counter() < end or len(times[1]) < 5:
        for call, values in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            call()
            values.append((time.perf_counter() - start) * 1e6)
    names = ("ours", "torch")
    row = {f"{name}_us": statistics.median(v) for name, v in zip(names, times, strict=True)}
    row |= {f"{name}_min_us": min(v) for name, v in zip(names, times, strict=True)}
    return {k: round(v, 1) for k, v in row.items()} | {
        "speedup": round(row["torch_min_us"] / row["ours_min_us"], 1)
    }


def bench(rows: int, seconds: float) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((rows, VOCAB))).astype(np.float32)
    history = rng.integers(0, VOCAB, (rows, HISTORY))
    found = []
    for name, make in CELLS.items():
        sides = (Ours(logits, history), Torch(logits, history))
        found.append({"step": name, "rows": rows, **measure(make(sides[0]), make(sides[1]), seconds)})
        sys.stderr.write(f"{found[-1]}\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=1.0, help="per cell")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    threads = args.threads
    torch.set_num_threads(threads)
    library.set_threads(threads)
    cells = [row for n in map(int, args.rows.split(",")) for row in bench(n, args.seconds)]
    versions = {"python": machine.python_version(), "numpy": np.__version__, "torch": torch.__version__}
    report = {
        "processor": processor_name(), "threads": threads, "library": library.chosen()[0], "vocab": VOCAB,
        "load": os.getloadavg()[0],
        "versions": versions, "cells": cells,
    }  # fmt: skip
    text = json.dumps(report, indent=1) + "\n"
    if args.out:
        args.out.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
