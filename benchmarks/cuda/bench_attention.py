"""Paged attention on one GPU, beside the fastest peers that can be imported.

    python benchmarks/cuda/bench_attention.py [--json FILE] [--only decode|short|prefill] [--cells NAME...]

Calls are captured in CUDA graphs over rotated inputs (caches together larger than the second-level
cache), so that launch gaps and cached data do not count; medians of replays. Decode: one query a
sequence over pages of 64 in random order; the rate counts keys and values once, in 16 bits. Prefill:
causal, the rate counts half of the square. `fd-cuda-int8`, `fd-cuda-float8`: the same over a cache of
codes with a scale for each row. Peers: FlashInfer where it is installed (its decode and prefill wrappers
on the same pages), torch's scaled_dot_product_attention on dense tensors (`torch`: cuDNN for prefill;
without a mask for a few queries behind others, since its fast kernels have none that ends bottom right).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fd_cuda import library
from timing import Call, copy_rate, timed
from torch.nn.attention import SDPBackend, sdpa_kernel

PAGE, ROTATED = 64, 512 << 20
NAME = "paged_attention_step"


@dataclass(frozen=True)
class Cell:
    """`batch` sequences of `queries` new tokens that end at `context` keys."""

    batch: int
    queries: int
    context: int
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128

    @property
    def name(self) -> str:
        return f"B{self.batch}-q{self.queries}-kv{self.context}-h{self.heads}/{self.kv_heads}x{self.dim}"

    @property
    def bytes(self) -> int:
        return 4 * self.batch * self.context * self.kv_heads * self.dim

    @property
    def flops(self) -> float:
        pairs = self.queries * (self.context - (self.queries - 1) / 2)
        return 4 * self.batch * pairs * self.heads * self.dim


DECODE = [Cell(b, 1, n) for b, n in ((64, 4096), (8, 32768), (1, 4096), (1, 131072), (256, 1024))]
DECODE += [Cell(64, 1, 4096, 64, 8), Cell(64, 1, 4096, 32, 32, 64), Cell(16, 4, 8192)]
#: A turn of a conversation, a draft's verification, the tail of a prompt: few queries, many keys.
SHORT = [Cell(1, q, n) for n in (4096, 131072) for q in (4, 8, 16, 64)]
SHORT += [Cell(4, 16, 32768), Cell(16, 8, 4096), Cell(16, 16, 8192), Cell(1, 256, 32768)]
PREFILL = [Cell(4, 4096, 4096), Cell(1, 16384, 16384), Cell(4, 1024, 8192), Cell(16, 512, 512)]
PREFILL += [Cell(1, 2048, 2048), Cell(4, 4096, 4096, 32, 32, 64)]


#: Types of codes, and the largest.
CODES = {"int8": (torch.int8, 127.0), "float8": (torch.float8_e4m3fn, 448.0)}


def code_rows(pool: torch.Tensor, name: str) -> torch.Tensor:
    """[..., dim] as codes with their scale behind them: [..., dim + 4]."""
    kind, largest = CODES[name]
    rows = torch.empty(*pool.shape[:-1], pool.shape[-1] + 4, dtype=torch.int8, device=pool.device)
    for block, to in zip(pool.split(256), rows.split(256), strict=True):
        scale = block.abs().amax(-1, keepdim=True).float() / largest
        codes = block / scale
        to[..., :-4] = (codes.round() if name == "int8" else codes).to(kind).view(torch.int8)
        to[..., -4:] = scale.view(torch.int8)
    return rows.view(kind)


class Step:
    """Tensors of one step; pages in random order, head-major as fd-cuda's backend keeps them."""

    def __init__(self, cell: Cell, dtype: torch.dtype = torch.bfloat16) -> None:
        self.cell = cell
        pages, rows = -(-cell.context // PAGE), cell.batch * cell.queries
        shape = (cell.batch * pages, cell.kv_heads, PAGE, cell.dim)
        options = {"device": "cuda", "dtype": dtype}
        self.key, self.value = (torch.randn(shape, **options) for _ in range(2))
        self.q = torch.randn(rows, cell.heads, cell.dim, **options)
        self.out = torch.empty_like(self.q)
        ids = torch.randperm(cell.batch * pages, device="cuda").int()
        self.table = ids.reshape(cell.batch, pages)
        self.cu = torch.arange(cell.batch + 1, device="cuda", dtype=torch.int32) * cell.queries
        self.lens = torch.full((cell.batch,), cell.context, device="cuda", dtype=torch.int32)
        self.scale = cell.dim**-0.5

    def call(self, name: str, *more: int, codes: str = "") -> Call:
        kernel = library.function(name)
        pools = [code_rows(x, codes) if codes else x for x in (self.key, self.value)]
        keys, values = (pool.permute(0, 2, 1, 3) for pool in pools)
        args = (self.q, keys, values, self.cu, self.lens, self.table, None, self.scale, 0, 0.0, *more)
        return lambda: kernel(*args, self.out)

    def dense(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, keys and values [batch, heads, tokens, dim]."""
        c = self.cell
        q = self.q.reshape(c.batch, c.queries, c.heads, c.dim).transpose(1, 2).contiguous()
        kv = (pool[self.table.long()].transpose(1, 2) for pool in (self.key, self.value))
        keys, values = (x.reshape(c.batch, c.kv_heads, -1, c.dim)[:, :, : c.context] for x in kv)
        return q, keys.contiguous(), values.contiguous()


def torch_call(step: Step, prefill: SDPBackend = SDPBackend.CUDNN_ATTENTION) -> Call:
    q, k, v = step.dense()
    causal = step.cell.queries == step.cell.context
    backends = [prefill if causal else SDPBackend.FLASH_ATTENTION]
    if not causal:  # the query heads of a group as rows: its fastest form
        c = step.cell
        q = q.reshape(c.batch, c.kv_heads, c.heads // c.kv_heads * c.queries, c.dim)

    def call() -> Any:
        with sdpa_kernel(backends):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=causal)

    return call


def flashinfer_call(step: Step, kind: str) -> Call:
    import flashinfer

    c = step.cell
    space = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    pages = step.table.shape[1]
    indptr = torch.arange(c.batch + 1, device="cuda", dtype=torch.int32) * pages
    last = torch.full_like(step.lens, (c.context - 1) % PAGE + 1)
    bound = (indptr, step.table.reshape(-1), last)
    fixed = {
        "paged_kv_indptr": indptr.clone(),
        "paged_kv_indices": bound[1].clone(),
        "paged_kv_last_page_len": last.clone(),
    }
    sizes = (c.heads, c.kv_heads, c.dim, PAGE)
    if kind == "decode":
        buffers = {f"{k}_buffer": v for k, v in fixed.items()}
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            space, "HND", use_cuda_graph=True, use_tensor_cores=True, **buffers
        )
        wrapper.plan(*bound, *sizes, q_data_type=step.q.dtype, kv_data_type=step.q.dtype)
    else:
        buffers = {f"{k}_buf": v for k, v in fixed.items()}
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
            space, "HND", backend=kind, use_cuda_graph=True, qo_indptr_buf=step.cu.clone(), **buffers
        )
        options = {"causal": True, "q_data_type": step.q.dtype}
        if kind == "fa2":  # its scratch for splitting grows with the queries, and they fill the device
            options["disable_split_kv"] = c.batch * c.queries > 1024
        wrapper.plan(step.cu, *bound, *sizes, **options)
    return lambda: wrapper.run(step.q, (step.key, step.value), out=step.out)


def peers(cell: Cell) -> dict[str, Callable[[Step], Call]]:
    chunk = 1 < cell.queries < cell.context
    found: dict[str, Callable[[Step], Call]] = {"torch-unmasked" if chunk else "torch": torch_call}
    if cell.queries == cell.context:
        found["torch-flash"] = lambda step: torch_call(step, SDPBackend.FLASH_ATTENTION)
    kinds = ["decode", "fa2", "fa3"] if cell.queries == 1 else ["fa2", "fa3"]
    return found | {f"flashinfer-{k}": (lambda step, k=k: flashinfer_call(step, k)) for k in kinds}


def ceilings() -> dict[str, float]:
    """TB/s of torch's sum over 1 GiB and of its copy, TFLOP/s of its product of bfloat16 matrices."""
    flat = torch.zeros(1 << 28, device="cuda")
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    read, product = timed([flat.sum] * 2), timed([lambda: square @ square] * 2)
    rates = {"read_tbps": 4 * flat.numel() / read / 1e6, "copy_tbps": copy_rate()}
    return {k: round(v, 2) for k, v in (rates | {"gemm_tflops": 2 * 8192**3 / product / 1e6}).items()}


def measure(cell: Cell) -> dict[str, Any]:
    copies = max(1, min(8, ROTATED // cell.bytes))
    steps = [Step(cell) for _ in range(copies)]
    ways: dict[str, Callable[[Step], Call]] = {
        "fd-cuda": lambda step: step.call(NAME, cell.queries),
        **{f"fd-cuda-{c}": (lambda step, c=c: step.call(NAME, cell.queries, codes=c)) for c in CODES},
        **peers(cell),
    }
    row: dict[str, Any] = {"cell": cell.name}
    for name, way in ways.items():
        try:
            row[name] = round(timed([way(step) for step in steps]), 2)
        except Exception as error:  # a peer that is absent or refuses is reported as such
            row[name] = f"{type(error).__name__}: {error}".splitlines()[0][:80]
            torch.cuda.synchronize()
    return row


def line(cell: Cell, row: dict[str, Any]) -> str:
    def rate(us: float) -> str:
        if cell.queries < 16:
            return f"{cell.bytes / us * 1e-6:.2f} TB/s"
        return f"{cell.flops / us * 1e-6:.0f} TFLOP/s"

    times = {k: v for k, v in row.items() if isinstance(v, float)}
    return f"{cell.name:34s} " + "  ".join(f"{k} {v:.1f} us {rate(v)}" for k, v in times.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["decode", "short", "prefill"])
    parser.add_argument("--cells", nargs="+", default=[""], help="beginnings of the names of those to run")
    args = parser.parse_args()
    groups = {"decode": DECODE, "short": SHORT, "prefill": PREFILL}
    cells = groups[args.only] if args.only else [cell for group in groups.values() for cell in group]
    cells = [cell for cell in cells if cell.name.startswith(tuple(args.cells))]
    rows, limits = [], ceilings()
    print(torch.cuda.get_device_name(), limits, flush=True)
    for cell in cells:
        rows.append(measure(cell))
        print(line(cell, rows[-1]), flush=True)
        torch.cuda.empty_cache()
    facts = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "unit": "microseconds, median",
        **limits,
        "command": " ".join(["python", *sys.argv]),
    }
    if find_spec("flashinfer"):
        facts["flashinfer"] = version("flashinfer-python")
    if args.json:
        args.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
