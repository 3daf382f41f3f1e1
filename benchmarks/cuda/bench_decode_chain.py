"""The kernels of decoding one token, layer after layer, without an engine: what their boundaries cost.

    python benchmarks/cuda/bench_decode_chain.py [--layers 8] [--kinds bf16 wint8 wint4] [--json FILE]

A captured graph holds `layers` Llama-3-8B decoder blocks of different weights (together larger than the
second-level cache), context 512, batch 1. Per kind of weights: microseconds of a block, and the share of
that which its weights need at the rate of torch's copy in the same run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from bench_linear import BLOCK, BYTES, MAKERS
from fd_cuda import library
from timing import Call, copy_rate, record, timed

HIDDEN, FFN, HEADS, KV_HEADS, DIM, CONTEXT, PAGE = 4096, 14336, 32, 8, 128, 512, 16
Shared = dict[str, torch.Tensor]


def shared_tensors() -> Shared:
    """What all blocks of a model write in turn, and the step's lists."""

    def half(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda").bfloat16()

    angles = torch.randn(4096, DIM, device="cuda")
    pages = torch.arange(CONTEXT // PAGE + 1, dtype=torch.int32, device="cuda")
    return {
        "x": half(1, HIDDEN),
        "residual": half(1, HIDDEN),
        "qkv": half(1, (HEADS + 2 * KV_HEADS) * DIM),
        "attended": half(1, HEADS * DIM),
        "gate_up": half(1, 2 * FFN),
        "inner": half(1, FFN),
        "norm": half(HIDDEN),
        "table": angles,
        "positions": torch.tensor([CONTEXT - 1], device="cuda"),
        "slots": torch.tensor([CONTEXT - 1], device="cuda"),
        "queries": torch.tensor([0, 1], dtype=torch.int32, device="cuda"),
        "lengths": torch.tensor([CONTEXT], dtype=torch.int32, device="cuda"),
        "pages": pages.view(1, -1),
    }


def projections(kind: str, t: Shared) -> dict[str, Call]:
    ends = {
        "qkv": ("x", "qkv"),
        "o": ("attended", "x"),
        "gate_up": ("x", "gate_up"),
        "down": ("inner", "x"),
    }
    found = {}
    for name, (columns, depth) in BLOCK.items():
        weight = (torch.randn(columns, depth, device="cuda") / depth**0.5).bfloat16()
        source, target = ends[name]
        found[name] = MAKERS[kind](t[source], weight, t[target])
    return found


def attention(t: Shared) -> Call:
    """Rotation, cache write and attention over pages of this block's own."""
    pool = (CONTEXT // PAGE + 1, KV_HEADS, PAGE, DIM)
    keys, values = (torch.randn(pool, device="cuda").bfloat16().transpose(1, 2) for _ in range(2))
    rope, attend = library.function("rope_and_cache"), library.function("paged_attention_step")
    q = t["qkv"].view(1, -1, DIM)[:, :HEADS]
    out = t["attended"].view(1, HEADS, DIM)
    lists = (t["queries"], t["lengths"], t["pages"])

    def run() -> None:
        rope(t["qkv"], t["positions"], t["table"], None, None, 1e-5, keys, values, t["slots"], True)
        attend(q, keys, values, *lists, None, DIM**-0.5, 0, 0.0, 1, out)

    return run


def block(kind: str, t: Shared) -> Call:
    linear, attend = projections(kind, t), attention(t)
    norm, swiglu = library.function("fused_add_rmsnorm"), library.function("swiglu")

    def run() -> None:
        linear["qkv"]()
        attend()
        linear["o"]()
        norm(t["x"], t["residual"], t["norm"], 1e-5)
        linear["gate_up"]()
        swiglu(t["gate_up"], None, t["inner"])
        linear["down"]()
        norm(t["x"], t["residual"], t["norm"], 1e-5)

    return run


def measure(kind: str, layers: int, rate: float) -> dict[str, object]:
    t = shared_tensors()
    us = timed([block(kind, t) for _ in range(layers)])
    weights = sum(n * k for n, k in BLOCK.values()) * BYTES[kind]
    share = round(weights / us / rate / 1e6, 3)
    return {"kind": kind, "us_per_block": round(us, 2), "share_of_copy": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", default=["bf16", "wint8", "wint4"], choices=MAKERS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rate = copy_rate()
    rows = [measure(kind, args.layers, rate) for kind in args.kinds]
    print(f"{torch.cuda.get_device_name()}; torch copies at {rate:.2f} TB/s")
    for row in rows:
        print(row)
    if args.json:
        args.json.write_text(json.dumps(record(rate, rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
