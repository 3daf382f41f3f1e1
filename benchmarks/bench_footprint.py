"""Seconds to load a model and peak memory of whole engines, ours and peers.

    python benchmarks/bench_footprint.py /tmp/bench/qwen3-0.6b-w4a8 [peers as for bench_engine.py]
        [--rounds 3] [--out results.json]

Every measurement is a fresh process, in turn, with the files in the page cache. It loads the model with
room for 1024 tokens a sequence, computes a prompt of 512 and then 16 tokens of another. Load time is that
of the engine's constructor, without imports; memory is the process's VmHWM, mapped weights included.
Reported: medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from ceilings import machine_facts
from peers import Launch, Peer, add_arguments, launches

JOBS = ({"job": "prefill", "tokens": 512}, {"job": "decode", "batch": 1, "context": 512, "steps": 16})
CONTEXT = "1024"


def once(launch: Launch) -> dict[str, Any]:
    peer = Peer(replace(launch, env={**launch.env, "BENCH_CONTEXT": CONTEXT}))
    try:
        loaded = peer.megabytes("VmRSS")
        for job in JOBS:
            peer.run(dict(job))
        sizes = {"loaded_mb": loaded, "peak_mb": peer.megabytes("VmHWM")}
        return {"name": peer.name, "load_seconds": peer.about["load_seconds"], **sizes}
    finally:
        peer.close()


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("load_seconds", "loaded_mb", "peak_mb")
    middle = {key: round(statistics.median(run[key] for run in runs), 3) for key in keys}
    spread = [min(run["load_seconds"] for run in runs), max(run["load_seconds"] for run in runs)]
    return {"name": runs[0]["name"], **middle, "load_spread": spread}


def main() -> None:
    parser = argparse.ArgumentParser(description="load time and peak memory of engines")
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    asked = launches(args)
    for launch in asked:
        once(launch)
    turns = [[once(launch) for launch in asked] for _ in range(args.rounds)]
    rows = [medians(list(runs)) for runs in zip(*turns, strict=True)]
    for row in rows:
        print(json.dumps(row), flush=True)
    if args.out:
        result = {"machine": machine_facts(), "rounds": args.rounds, "rows": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
