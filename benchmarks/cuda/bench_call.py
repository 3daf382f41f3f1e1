"""Microseconds of host time to call one small op on a GPU, beside torch.

    python benchmarks/cuda/bench_call.py [--rounds 15] [--json benchmarks/results/cuda_call.json]

`public`: `fd_core.ops.OP(..., out=y)` on torch's tensors; `made`: the same without `out=`, which allocates;
`bound`: the op of an open session on the same tensors; `bare`: the compiled function itself, TVM-FFI's
conversion and our checks and launch included; `torch`: the library's own operator that writes the same
output. The work is small enough for the device to keep up, so that what is timed is the host. Rounds of
all alternate; medians of the rounds.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fd_core import ops
from fd_core.host.session import current_session

CALLS = 2000
Calls = dict[str, Callable[[], Any]]


def silu_calls() -> Calls:
    x, y = (torch.randn(8, 256, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    bound = current_session().ops.silu
    return {
        "public": lambda: ops.silu(x, out=y),
        "made": lambda: ops.silu(x),
        "bound": lambda: bound(x, y),
        "bare": lambda: bound.target(x, y),
        "torch": lambda: torch.add(x, 1, out=y),
    }


def rms_norm_calls() -> Calls:
    x, y = (torch.randn(8, 256, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    w = torch.ones(256, device="cuda", dtype=torch.bfloat16)
    bound = current_session().ops.rms_norm
    return {
        "public": lambda: ops.rms_norm(x, w, 1e-6, out=y),
        "made": lambda: ops.rms_norm(x, w, 1e-6),
        "bound": lambda: bound(x, w, 1e-6, y),
        "bare": lambda: bound.target(x, w, 1e-6, y),
        "torch": lambda: torch.mul(x, w, out=y),
    }


def linear_calls() -> Calls:
    x = torch.randn(1, 256, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16)
    y = torch.empty(1, 256, device="cuda", dtype=torch.bfloat16)
    bound = current_session().ops.linear
    return {
        "public": lambda: ops.linear(x, w, None, out=y),
        "made": lambda: ops.linear(x, w, None),
        "bound": lambda: bound(x, w, None, y),
        "bare": lambda: bound.target(x, w, None, y),
        "torch": lambda: torch.mm(x, w, out=y),
    }


def reshape_and_cache_flash_calls() -> Calls:
    """Eight arguments, none of them an output; torch needs a call for keys and one for values."""
    new = torch.randn(2, 4, 2, 64, device="cuda", dtype=torch.bfloat16)
    keys, values = torch.zeros(2, 3, 16, 2, 64, device="cuda", dtype=torch.bfloat16)
    slots = torch.tensor([17, 3, 40, 8], device="cuda")
    rows = keys.view(-1, 2, 64), values.view(-1, 2, 64)
    bound = current_session().ops.reshape_and_cache_flash
    args = (*new, keys, values, slots, None, None, "auto")

    def torch_calls() -> None:
        rows[0].index_copy_(0, slots, new[0])
        rows[1].index_copy_(0, slots, new[1])

    return {
        "public": lambda: ops.reshape_and_cache_flash(*args),
        "bound": lambda: bound(*args),
        "bare": lambda: bound.target(*args),
        "torch": torch_calls,
    }


CASES = {
    "silu": silu_calls,
    "rms_norm": rms_norm_calls,
    "linear": linear_calls,
    "reshape_and_cache_flash": reshape_and_cache_flash_calls,
}


def measure(calls: Calls, rounds: int) -> dict[str, float]:
    """Medians over rounds, each of which waits for the device before it is timed."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            torch.cuda.synchronize()
            times[name].append(timeit.timeit(call, number=CALLS) / CALLS * 1e6)
    return {name: round(statistics.median(t), 2) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="host time of an op call")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = {name: measure(case(), args.rounds) for name, case in CASES.items()}
    for row in rows.values():
        row["public_less_bare"] = round(row["public"] - row["bare"], 2)
        row["public_over_torch"] = round(row["public"] / row["torch"], 2)
    versions = {p: importlib.metadata.version(p) for p in ("apache-tvm-ffi", "torch", "numpy")}
    record = {
        "card": torch.cuda.get_device_name(),
        "versions": versions,
        "unit": "microseconds",
        "rows": rows,
    }
    print(json.dumps(record, indent=1))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
