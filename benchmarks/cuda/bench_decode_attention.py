"""What rotation, cache write and attention add to a decoding step, between two linear layers.

    python benchmarks/cuda/bench_decode_attention.py [--json FILE] [--cells B1-kv512 ...]

A captured graph holds eight blocks of Llama-3-8B's sizes (32 heads over 8 of 128, bfloat16, pages of 16 in
random order): the projections before and after attention, with weights and caches of their own, and
between them nothing (`none`), rope_and_cache alone (`rope`), rope_and_cache and the split kernel (`two`),
or rope_and_paged_attention (`one`). Microseconds of a block beyond `none`; keys and values are read from
memory, the weights between them are larger than the second-level cache.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fd_cuda import library
from timing import Call, copy_rate, record, timed

HIDDEN, HEADS, KV_HEADS, DIM, PAGE, LAYERS = 4096, 32, 8, 128, 16, 8
WAYS = ("none", "rope", "two", "one")


@dataclass(frozen=True)
class Cell:
    """`batch` sequences that end at `context` keys, the new one included."""

    batch: int
    context: int

    @property
    def name(self) -> str:
        return f"B{self.batch}-kv{self.context}"


CELLS = [Cell(1, n) for n in (64, 512, 1024, 2048, 4096, 16384, 131072)]
CELLS += [Cell(2, 512), Cell(2, 4096), Cell(4, 512), Cell(4, 4096), Cell(8, 512)]


class Step:
    """What all blocks of a model read and write in turn, and the step's lists."""

    def __init__(self, cell: Cell) -> None:
        def half(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device="cuda").bfloat16()

        self.cell, n = cell, cell.batch
        self.x, self.qkv = half(n, HIDDEN), half(n, (HEADS + 2 * KV_HEADS) * DIM)
        self.out = half(n, HEADS, DIM)
        self.table = torch.randn(cell.context, DIM, device="cuda")
        pages = -(-cell.context // PAGE)
        blocks = torch.randperm(n * pages, device="cuda", dtype=torch.int32).view(n, pages)
        last, kind = cell.context - 1, {"device": "cuda", "dtype": torch.int32}
        self.positions = torch.full((n,), last, **kind)
        self.slots = blocks[:, last // PAGE].long() * PAGE + last % PAGE
        self.lists = (torch.arange(n + 1, **kind), torch.full((n,), cell.context, **kind), blocks)

    def block(self, way: str) -> Call:
        before, after = (
            (torch.randn(n, HIDDEN, device="cuda") / HIDDEN**0.5).bfloat16()
            for n in (self.qkv.shape[1], HIDDEN)
        )
        pool = (self.lists[2].numel(), KV_HEADS, PAGE, DIM)
        caches = [torch.randn(pool, device="cuda").bfloat16().transpose(1, 2) for _ in range(2)]
        linear, attend = library.function("linear_fixed_weight"), self._attention(way, caches)

        def run() -> None:
            linear(self.x, before, None, self.qkv)
            attend()
            linear(self.out.view(-1, HIDDEN), after, None, self.x)

        return run

    def _attention(self, way: str, caches: list[torch.Tensor]) -> Call:
        rope, split = library.function("rope_and_cache"), library.function("paged_attention_split")
        one = library.function("rope_and_paged_attention")
        q = self.qkv.view(len(self.qkv), -1, DIM)[:, :HEADS]
        turn = (self.qkv, self.positions, self.table, None, None, 0.0, *caches, self.slots, True)
        step = (*self.lists, None, DIM**-0.5, 0, 0.0, 1)

        def two() -> None:
            rope(*turn)
            split(q, *caches, *step, 0, 0, 0, 0, self.out)

        calls: dict[str, Call] = {
            "none": lambda: None,
            "rope": lambda: rope(*turn),
            "two": two,
            "one": lambda: one(*turn, *step, self.out),
        }
        return calls[way]


def measure(cell: Cell) -> dict[str, Any]:
    step, us = Step(cell), {}
    for way in WAYS:
        layers = max(2, min(LAYERS, (32 << 30) // (4 * cell.batch * cell.context * KV_HEADS * DIM)))
        us[way] = timed([step.block(way) for _ in range(layers)])
        torch.cuda.empty_cache()
    added = {way: round(us[way] - us["none"], 2) for way in WAYS[1:]}
    return {"cell": cell.name, "linear_us": round(us["none"], 2), **added}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cells", nargs="+", default=[""], help="beginnings of the names of those to run")
    args = parser.parse_args()
    rate, rows = copy_rate(), []
    print(f"{torch.cuda.get_device_name()}; torch copies at {rate:.2f} TB/s")
    for cell in (c for c in CELLS if c.name.startswith(tuple(args.cells))):
        rows.append(measure(cell))
        print(rows[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps(record(rate, rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
