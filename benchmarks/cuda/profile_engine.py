"""Where a decode step's time goes on the GPU, kernel by kernel (through torch's profiler).

    python benchmarks/cuda/profile_engine.py --cell batch64 [--quantization wint4] [--layers 8]

Prints, per kernel: calls and microseconds per step, and its share of all kernel time; then the idle time
between kernels. The step runs as a replayed graph, as in service.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from bench_engine import CELLS, LLAMA3_8B, Ours
from torch.profiler import ProfilerActivity, profile

STEPS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cell", default="batch1", choices=CELLS)
    parser.add_argument("--quantization", default="")
    parser.add_argument("--layers", type=int, default=8)
    args = parser.parse_args()
    LLAMA3_8B["num_hidden_layers"] = args.layers
    folder = Path(tempfile.mkdtemp(prefix="llama3-8b-"))
    (folder / "config.json").write_text(json.dumps(LLAMA3_8B))
    ours = Ours(folder, args.quantization, graphs=True)
    batch, context, _ = CELLS[args.cell]
    ours.decode(batch, context, 8)
    ours.fill(batch, context, STEPS + 64)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(STEPS):
            ours.engine.step()
        torch.cuda.synchronize()
    ours.drain()
    report(trace)


def report(trace: profile) -> None:
    """What ran while `STEPS` steps were launched and, but for the last, read."""
    found = [e for e in trace.events() if e.device_type.name == "CUDA"]
    rows: dict[str, list[float]] = defaultdict(list)
    for event in found:
        rows[event.name].append(event.time_range.elapsed_us())
    span = max(e.time_range.end for e in found) - min(e.time_range.start for e in found)
    busy = sum(sum(times) for times in rows.values())
    print(
        f"{span / STEPS:.1f} us per step, {busy / STEPS:.1f} in kernels, {(span - busy) / STEPS:.1f} idle"
    )
    for name, times in sorted(rows.items(), key=lambda row: -sum(row[1])):
        total, count = sum(times) / STEPS, len(times) / STEPS
        print(
            f"{total * STEPS / busy:6.1%} {total:9.1f} us {count:6.1f} x {total / count:8.2f}  {name[:110]}"
        )


if __name__ == "__main__":
    main()
