"""Timing of GPU calls, and the record of a run: what the scripts for element-wise kernels share."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

Call = Callable[[], Any]
#: Bytes of a case's rotated tensors together: several times the second-level cache.
ROTATED = 512 << 20


def captured(calls: list[Call]) -> torch.cuda.CUDAGraph:
    """A graph that runs `calls` in turn."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def medians(graphs: list[torch.cuda.CUDAGraph], repeats: int = 15) -> list[float]:
    """Microseconds of a replay of each; they are replayed in turn."""
    times: list[list[float]] = [[] for _ in graphs]
    for _ in range(repeats + 3):
        for graph, found in zip(graphs, times, strict=True):
            start, end = torch.cuda.Event(True), torch.cuda.Event(True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) * 1e3)
    return [median(found[3:]) for found in times]


def timed(calls: list[Call], repeats: int = 15) -> float:
    """Microseconds of one call: the median over replays of a graph that runs all of `calls` in turn."""
    return medians([captured(calls)], repeats)[0] / len(calls)


@dataclass(frozen=True)
class Case:
    """`make()` gives fresh tensors as (the kernel's call, torch's). `bytes`: what one call must move."""

    op: str
    shape: str
    bytes: int
    make: Callable[[], tuple[Call, Call]]

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape}"


@dataclass(frozen=True)
class Row:
    """Microseconds of a call; TB/s of the case's bytes; torch's time over ours."""

    case: str
    us: float
    tbps: float
    torch_us: float
    ratio: float


def measure(case: Case) -> Row:
    sets = max(8, min(64, ROTATED // max(case.bytes, 1)))
    calls = [case.make() for _ in range(sets)]
    ours, theirs = (timed([pair[i] for pair in calls]) for i in range(2))
    return Row(
        case.name,
        round(ours, 2),
        round(case.bytes / ours / 1e6, 3),
        round(theirs, 2),
        round(theirs / ours, 2),
    )


def copy_rate(nbytes: int = 64 << 20) -> float:
    """TB/s, read and written bytes together, of torch's copy of `nbytes`."""
    pairs = [[torch.zeros(nbytes, dtype=torch.uint8, device="cuda") for _ in range(2)] for _ in range(8)]
    us = timed([lambda a=a, b=b: b.copy_(a) for a, b in pairs])  # type: ignore[misc]
    return 2 * nbytes / us / 1e6


def read_rate(nbytes: int = 256 << 20) -> float:
    """TB/s of torch's sum over `nbytes` of float32."""
    sources = [torch.zeros(nbytes // 4, device="cuda") for _ in range(4)]
    return nbytes / timed([source.sum for source in sources]) / 1e6


def main(description: str, cases: Iterable[Case]) -> None:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="part of a case's name")
    args = parser.parse_args()
    copied, read = copy_rate(), read_rate()
    print(f"{torch.cuda.get_device_name()}; torch copies at {copied:.2f} TB/s, sums up at {read:.2f} TB/s")
    print(f"{'case':52} {'us':>8} {'TB/s':>6} {'of copy':>8} {'torch us':>9} {'ratio':>6}")
    rows = []
    for case in (c for c in cases if args.only in c.name):
        row = measure(case)
        rows.append(asdict(row))
        share = f"{row.tbps / copied:8.0%}"
        print(f"{row.case:52} {row.us:8.2f} {row.tbps:6.2f} {share} {row.torch_us:9.2f} {row.ratio:6.2f}")
    if args.json:
        facts = record(copied, rows) | {"read_tbps": round(read, 3)}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


def record(copied: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "copy_tbps": round(copied, 3),
        "rows": rows,
    }
