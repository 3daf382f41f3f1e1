"""Mixture of experts in bfloat16 and over integer weights on one GPU, beside torch's grouped product.

    python benchmarks/cuda/bench_moe.py [--json FILE] [--only NAME] [--weights NAME ...]

Calls are captured in CUDA graphs over rotated weights (together larger than the second-level cache);
medians of ten replays. Experts are chosen by random scores. `ffn`: both products of the experts' rows;
torch: `torch._grouped_mm` twice with silu and product between. `layer`: routing, rows out, products, rows
back, as fd_core.layers.moe calls them; torch: softmax, topk, argsort, index, the same products,
index_add. The rates count the weights of experts in use, scales included, and two operations a product.
`weights`: "bfloat16", or those of methods wint8 and wint4 (groups of 64, 128, whole rows), which torch's
grouped product does not take: it stays the one in bfloat16.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fd_cuda import library
from fd_cuda.quant import int4_scale_spec, int4_spec, int8_spec
from timing import ROTATED, Call, timed


@dataclass(frozen=True)
class Model:
    name: str
    hidden: int
    inner: int
    experts: int
    chosen: int


MODELS = [Model("Qwen3-30B-A3B", 2048, 768, 128, 8), Model("Mixtral-8x7B", 4096, 14336, 8, 2)]
TOKENS = [1, 8, 64, 512, 4096]
#: Groups of int4 weights by name; "wint8" has none.
GROUPS = {"wint4": 64, "wint4-128": 128, "wint4-whole": -1}
WEIGHTS = ["bfloat16", "wint8", *GROUPS]


class PackedStacks:
    """Random codes of all experts: both matrices' codes and scales, as `moe_expert_int8` takes them."""

    def __init__(self, model: Model, weights: str) -> None:
        self.kernel = library.function("moe_expert_int8" if weights == "wint8" else "moe_expert_int4")
        up = self._stack((model.experts, 2), model.inner, model.hidden, GROUPS.get(weights, 0))
        down = self._stack((model.experts,), model.hidden, model.inner, GROUPS.get(weights, 0))
        self.tensors = [*up, *down]

    def _stack(self, lead: tuple[int, ...], columns: int, depth: int, group: int) -> list[torch.Tensor]:
        codes, whole = int8_spec(columns, depth), (columns,)
        if group:
            codes, whole = int4_spec(columns, depth, group), int4_scale_spec(columns, depth, group).shape
        low, high, kind = (0, 256, torch.uint8) if group else (-127, 128, torch.int8)
        made = torch.randint(low, high, (*lead, *codes.shape), dtype=kind, device="cuda")
        scales = torch.full((*lead, *whole), 2e-4, device="cuda")
        return [made, scales.bfloat16() if len(whole) > 1 else scales]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


class Layer:
    """Weights and buffers of one layer over `tokens` tokens; `packed` instead of the bfloat16 ones."""

    def __init__(self, model: Model, tokens: int, packed: PackedStacks | None = None) -> None:
        m, rows = model, tokens * model.chosen

        def half(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.02

        def ints(*shape: int) -> torch.Tensor:
            return torch.empty(shape, device="cuda", dtype=torch.int32)

        self.model, self.packed = m, packed
        if packed is None:
            self.up, self.down = half(m.experts, m.hidden, 2 * m.inner), half(m.experts, m.inner, m.hidden)
        self.x, self.out = half(tokens, m.hidden), half(tokens, m.hidden)
        self.scores = torch.randn(tokens, m.experts, device="cuda")
        self.rows, self.results = half(rows, m.hidden), half(rows, m.hidden)
        self.ends = torch.empty(m.experts, device="cuda", dtype=torch.int64)
        self.places, self.ids, self.owners = ints(m.chosen, tokens), ints(tokens, m.chosen), ints(rows)
        self.weights = torch.empty(tokens, m.chosen, device="cuda")
        self.dispatch()
        self.offsets = self.ends.int()

    def dispatch(self) -> None:
        outs = (self.rows, self.ends, self.places, self.weights, self.ids, self.owners)
        kernel = library.function("moe_expert_dispatch")
        kernel(self.x, self.scores, None, None, self.model.chosen, False, "", False, *outs)

    @property
    def nbytes(self) -> int:
        """Of all experts' weights."""
        return self.packed.nbytes if self.packed else self.up.nbytes + self.down.nbytes

    def ffn(self) -> None:
        if self.packed:
            tensors = self.packed.tensors
            self.packed.kernel(self.rows, self.ends, *tensors, self.model.inner, self.results)
            return
        absent = (None, None, None, None)
        kernel = library.function("moe_expert_ffn")
        kernel(self.rows, self.ends, self.up, self.down, *absent, self.owners, "none", False, self.results)

    def run(self) -> None:
        self.dispatch()
        self.ffn()
        kernel = library.function("moe_expert_reduce")
        kernel(self.results, self.weights, self.places, self.ids, None, True, 1.0, self.out)

    def torch_products(self, rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        h = torch._grouped_mm(rows, self.up, offs=offsets)
        gate, value = h.chunk(2, -1)
        return torch._grouped_mm(torch.nn.functional.silu(gate) * value, self.down, offs=offsets)

    def torch_ffn(self) -> torch.Tensor:
        return self.torch_products(self.rows, self.offsets)

    def torch_run(self) -> torch.Tensor:
        weights, ids = self.scores.softmax(-1).topk(self.model.chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        order = ids.view(-1).argsort(stable=True)
        tokens = order // self.model.chosen
        ends = torch.zeros(self.model.experts, device="cuda", dtype=torch.int32)
        ends.scatter_add_(0, ids.view(-1), torch.ones_like(order, dtype=torch.int32))
        rows = self.torch_products(self.x[tokens], ends.cumsum(0).int())
        shares = rows * weights.view(-1)[order].unsqueeze(-1)
        return torch.zeros_like(self.x).index_add_(0, tokens, shares.to(self.x.dtype))


def peer(calls: list[Call]) -> float | None:
    """Microseconds of torch's way; None where this torch cannot go it."""
    try:
        return round(timed(calls), 1)
    except (AttributeError, RuntimeError) as error:
        print(f"torch: {str(error).splitlines()[0]}")
        return None


def layers_of(model: Model, tokens: int, weights: str) -> list[Layer]:
    """Copies whose weights exceed the second-level cache together."""
    layers: list[Layer] = []
    while not layers or len(layers) * layers[0].nbytes < ROTATED:
        packed = None if weights == "bfloat16" else PackedStacks(model, weights)
        layers.append(Layer(model, tokens, packed))
    return layers


def measure(
    model: Model, tokens: int, weights: str, torch_us: dict[str, float | None]
) -> list[dict[str, Any]]:
    """`torch_us`: torch's times by step, filled by the bfloat16 layers."""
    layers = layers_of(model, tokens, weights)
    used = sum(len(torch.unique(layer.ids)) for layer in layers) / len(layers)
    flops = 6 * tokens * model.chosen * model.hidden * model.inner
    found = []
    for step, ours, theirs in (("ffn", "ffn", "torch_ffn"), ("layer", "run", "torch_run")):
        us = timed([getattr(layer, ours) for layer in layers])
        if weights == "bfloat16":
            torch_us[step] = peer([getattr(layer, theirs) for layer in layers])
        other = torch_us.get(step)
        found.append({
            "model": model.name, "weights": weights, "tokens": tokens, "step": step, "us": round(us, 1),
            "TB/s": round(used * layers[0].nbytes / model.experts / us * 1e-6, 2),
            "TFLOP/s": round(flops / us * 1e-6, 1), "torch_us": other,
            "times_torch": round(other / us, 2) if other else None,
        })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=WEIGHTS)
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    args = parser.parse_args()
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "python": platform.python_version(), "cells": [],
    }  # fmt: skip
    chosen = [model for model in MODELS if args.only in model.name]
    for model, tokens in itertools.product(chosen, args.tokens):
        torch_us: dict[str, float | None] = {}
        for weights in args.weights:
            for cell in measure(model, tokens, weights, torch_us):
                report["cells"].append(cell)
                print("  ".join(f"{v!s:>13}" for v in cell.values()), flush=True)
            torch.cuda.empty_cache()
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
