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
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        ours.decode(batch, context, STEPS + 2)
        torch.cuda.synchronize()
    report(trace, STEPS)


def report(trace: profile, steps: int) -> None:
    """Events of the last `steps` steps, found from the end: prefill comes first."""
    found = (e for e in trace.events() if e.device_type.name == "CUDA")
    events = sorted(found, key=lambda e: e.time_range.start)
    starts = [i for i, e in enumerate(events) if "embedding" in e.name]
    if len(starts) <= steps:
        raise SystemExit(f"want {steps} steps in the trace, have {len(starts)} embeddings")
    chosen = events[starts[-steps - 1] : starts[-1]]
    span = (events[starts[-1]].time_range.start - chosen[0].time_range.start) / steps
    rows: dict[str, list[float]] = defaultdict(list)
    for event in chosen:
        rows[event.name].append(event.time_range.elapsed_us())
    busy = sum(sum(times) for times in rows.values()) / steps
    print(f"{span:.1f} us per step, {busy:.1f} in kernels, {span - busy:.1f} idle")
    for name, times in sorted(rows.items(), key=lambda row: -sum(row[1])):
        total, count = sum(times) / steps, len(times) / steps
        print(f"{total / busy:6.1%} {total:9.1f} us {count:6.1f} x {total / count:8.2f}  {name[:110]}")


if __name__ == "__main__":
    main()
