"""Seconds from process start to the first token of `fd generate` on the embedded model.

    python benchmarks/bench_startup.py [--runs 7] [--out benchmarks/results/startup-NAME.json]

The first run fills caches (files, the probe of the plug-ins) and is reported apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from ceilings import machine_facts

COMMAND = [sys.executable, "-m", "fd_core", "generate", "A list is", "--max-tokens", "1"]


def first_token() -> float:
    """The prompt is shown together with the first token, so the first byte tells."""
    started = time.perf_counter()
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - started
        process.stdout.read()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="time to first token of a fresh process")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    first, *rest = (first_token() for _ in range(args.runs + 1))
    result = {
        "machine": machine_facts(),
        "first_run_seconds": round(first, 3),
        "median_seconds": round(statistics.median(rest), 3),
        "spread_seconds": [round(min(rest), 3), round(max(rest), 3)],
    }
    print(json.dumps(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
