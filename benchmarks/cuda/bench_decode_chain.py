"""The kernels of decoding one token, layer after layer, without an engine: what their boundaries cost.

    python benchmarks/cuda/bench_decode_chain.py [--layers 8] [--kinds bf16 wint8 wint4] [--json FILE]

A captured graph holds `layers` Llama-3-8B decoder blocks of different weights (together larger than the
second-level cache), context 512, batch 1. Per kind of weights: microseconds of a block, and the share of
that which its weights need at the rate of torch's copy in the same run; as the engine runs it, where a
product takes norm, gate and addition along, and, in turn with it, with a kernel for each
(`separate`). `attention`: of the rotation, the cache write and attention alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from bench_linear import BLOCK, BYTES, packed, product
from fd_cuda import library
from timing import Call, captured, copy_rate, medians, record, timed

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


#: Of a product: x, the result, and whether it takes along the norm, the gate and the addition.
FUSED = {
    "qkv": ("residual", "qkv", True, False, False),
    "o": ("attended", "residual", False, False, True),
    "gate_up": ("residual", "inner", True, True, False),
    "down": ("inner", "residual", False, False, True),
}
SEPARATE = {
    "qkv": ("x", "qkv"),
    "o": ("attended", "x"),
    "gate_up": ("x", "gate_up"),
    "down": ("inner", "x"),
}
KINDS = ("bf16", "wint8", "wint4")
FUSED_KERNELS = {"wint8": "linear_int8_fused", "wint4": "linear_int4_fused"}
Weights = dict[str, list[torch.Tensor]]


def weights(kind: str) -> Weights:
    return {
        name: packed(kind, (torch.randn(n, k, device="cuda") / k**0.5).bfloat16())
        for name, (n, k) in BLOCK.items()
    }


def fused_product(kind: str, name: str, weight: list[torch.Tensor], t: Shared) -> Call:
    source, target, normed, gated, add = FUSED[name]
    run, norm = library.function(FUSED_KERNELS[kind]), t["norm"] if normed else None
    return lambda: run(t[source], *weight, None, norm, 1e-5, gated, add, t[target])


def has(name: str) -> bool:
    try:
        library.function(name)
    except AttributeError:
        return False
    return True


def attention(t: Shared) -> Call:
    """Rotation, cache write and attention over pages of this block's own."""
    pool = (CONTEXT // PAGE + 1, KV_HEADS, PAGE, DIM)
    keys, values = (torch.randn(pool, device="cuda").bfloat16().transpose(1, 2) for _ in range(2))
    q = t["qkv"].view(1, -1, DIM)[:, :HEADS]
    out = t["attended"].view(1, HEADS, DIM)
    rotation = (t["qkv"], t["positions"], t["table"], None, None, 1e-5, keys, values, t["slots"], True)
    lists, options = (t["queries"], t["lengths"], t["pages"]), (None, DIM**-0.5, 0, 0.0, 1)
    if has("rope_and_paged_attention"):
        run = library.function("rope_and_paged_attention")
        return lambda: run(*rotation, *lists, *options, out)
    rope, attend = library.function("rope_and_cache"), library.function("paged_attention_step")

    def in_turn() -> None:
        rope(*rotation)
        attend(q, keys, values, *lists, *options, out)

    return in_turn


def separate(kind: str, layer: Weights, attend: Call, t: Shared) -> list[Call]:
    linear = {n: product(kind, t[x], layer[n], t[out]) for n, (x, out) in SEPARATE.items()}
    norm, swiglu = library.function("fused_add_rmsnorm"), library.function("swiglu")

    def normed() -> None:
        norm(t["x"], t["residual"], t["norm"], 1e-5)

    def gated() -> None:
        swiglu(t["gate_up"], None, t["inner"])

    return [linear["qkv"], attend, linear["o"], normed, linear["gate_up"], gated, linear["down"], normed]


def fused(kind: str, layer: Weights, attend: Call, t: Shared) -> list[Call]:
    """As the engine runs it: 16-bit weights have a kernel for each."""
    if kind not in FUSED_KERNELS:
        return separate(kind, layer, attend, t)
    qkv, o, gate_up, down = (fused_product(kind, name, layer[name], t) for name in FUSED)
    return [qkv, attend, o, gate_up, down]


def measure(kind: str, layers: int, rate: float) -> dict[str, object]:
    """Both chains over the same weights, replayed in turn."""
    t = shared_tensors()
    model = [(weights(kind), attention(t)) for _ in range(layers)]
    graphs = [captured([c for w, a in model for c in make(kind, w, a, t)]) for make in (fused, separate)]
    us, apart = (time / layers for time in medians(graphs))
    size = sum(n * k for n, k in BLOCK.values()) * BYTES[kind]
    return {
        "kind": kind,
        "us_per_block": round(us, 2),
        "share_of_copy": round(size / us / rate / 1e6, 3),
        "separate_us_per_block": round(apart, 2),
        "attention_us": round(timed([attend for _, attend in model]), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
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
