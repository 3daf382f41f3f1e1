"""Microseconds per call of one op on tensors of other libraries, over the floor: the bare TVM-FFI function.

    python benchmarks/bench_guests.py [--rounds 9] [--out benchmarks/results/guests-NAME.json]

`floor`: the compiled function called directly; `given`: `fd_core.ops.rms_norm(x, w, eps, out=y)`;
`made`: the result is allocated; `own`: the library's own operator of the same kind, for scale. Rounds of
all four alternate; the median and the range of the rounds are reported.
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

import numpy as np
from ceilings import machine_facts

from fd_core import ops
from fd_core.api.tensor import from_numpy
from fd_core.host.session import current_session

CALLS = 5000


def paddle_case() -> tuple[list[Any], Callable[[], Any]]:
    import paddle

    x, w, y = paddle.randn([4, 8]), paddle.ones([8]), paddle.empty([4, 8])
    return [x, w, y], lambda: paddle.nn.functional.silu(x)


def torch_case() -> tuple[list[Any], Callable[[], Any]]:
    import torch

    x, w, y = torch.randn(4, 8), torch.ones(8), torch.empty(4, 8)
    return [x, w, y], lambda: torch.nn.functional.silu(x)


def own_case() -> tuple[list[Any], None]:
    arrays = (np.ones((4, 8), np.float32), np.ones(8, np.float32), np.empty((4, 8), np.float32))
    return [from_numpy(a) for a in arrays], None


def numpy_case() -> tuple[list[Any], Callable[[], Any]]:
    x, w, y = np.ones((4, 8), np.float32), np.ones(8, np.float32), np.empty((4, 8), np.float32)
    return [x, w, y], lambda: x / (1 + np.exp(-x))


CASES = {"paddle": paddle_case, "torch": torch_case, "numpy": numpy_case, "fd_core.Tensor": own_case}


def calls(tensors: list[Any], own: Callable[[], Any] | None, floor: bool) -> dict[str, Callable[[], Any]]:
    x, w, y = tensors
    target = current_session().ops.rms_norm.target
    found: dict[str, Callable[[], Any]] = {
        "given": lambda: ops.rms_norm(x, w, 1e-6, out=y),
        "made": lambda: ops.rms_norm(x, w, 1e-6),
    }
    if floor:
        found["floor"] = lambda: target(x, w, 1e-6, y)
    if own is not None:
        found["own"] = own
    return found


def measure(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(timeit.timeit(function, number=CALLS) / CALLS * 1e6)
    return {
        name: {
            "median_us": round(statistics.median(t), 2),
            "range_us": [round(min(t), 2), round(max(t), 2)],
        }
        for name, t in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="overhead of guests' tensors")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = {}
    for name, case in CASES.items():
        tensors, own = case()
        rows[name] = measure(calls(tensors, own, floor=name != "numpy"), args.rounds)
        if "floor" in rows[name]:
            over = rows[name]["given"]["median_us"] - rows[name]["floor"]["median_us"]
            rows[name]["given_over_floor_us"] = round(over, 2)
    packages = ("apache-tvm-ffi", "paddlepaddle", "torch", "numpy")
    versions = {p: importlib.metadata.version(p) for p in packages}
    result = {
        "machine": machine_facts(),
        "versions": versions,
        "op": "rms_norm [4, 8] float32",
        "calls": rows,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
