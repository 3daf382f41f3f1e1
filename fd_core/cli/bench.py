"""`fd bench`: prefill and decode speed of a model, without a server."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

HELP = "measure prefill and decode speed of a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from fd_core.cli.options import add_engine_options

    parser.add_argument("model", nargs="?", default="", help="model folder (default: the embedded model)")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1], help="sequences decoded together")
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--decode-len", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    from fd_core.cli.options import engine_config
    from fd_core.engine.build import build_model
    from fd_core.engine.dummy import DummyRunner
    from fd_core.host.session import open_session

    config = engine_config(args, args.model)
    session = open_session(config.platform or None, config.device_index)
    model = build_model(config, session)
    runner = DummyRunner(
        model,
        max_num_tokens=config.max_num_batched_tokens,
        max_model_len=model.config.max_model_len,
        block_size=config.block_size,
    )
    rows = [
        measure(runner, size, args.prompt_len, args.decode_len, args.repeats) for size in args.batch_size
    ]
    head = {"platform": session.platform.name, "device": session.device.name, "arch": session.device.arch}
    _show({**head, "dtype": str(model.context.dtype), "rows": rows}, args.json)
    return 0


def measure(runner: Any, batch: int, prompt: int, decode: int, repeats: int) -> dict[str, Any]:
    """Median tokens per second of each phase, after one run that is not counted."""
    runner.run(batch, prompt, min(decode, 2))
    reports = [runner.run(batch, prompt, decode, seed=i) for i in range(repeats)]
    row: dict[str, Any] = {"batch_size": batch, "prompt_len": prompt, "decode_len": decode}
    for phase in ("prefill", "decode"):
        rates = [
            r.per_phase_tokens[phase] / r.per_phase_time[phase] for r in reports if r.per_phase_time[phase]
        ]
        row[f"{phase}_tokens_per_second"] = round(statistics.median(rates), 2) if rates else None
    row["peak_memory"] = max(r.peak_memory for r in reports)
    return row


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
        return
    sys.stdout.write(f"{result['platform']} on {result['device']} ({result['arch']}), {result['dtype']}\n")
    sys.stdout.write(f"{'batch':>6} {'prompt':>7} {'prefill tok/s':>14} {'decode tok/s':>13}\n")
    for row in result["rows"]:
        prefill, decode = row["prefill_tokens_per_second"], row["decode_tokens_per_second"]
        sys.stdout.write(
            f"{row['batch_size']:>6} {row['prompt_len']:>7} {prefill or '-':>14} {decode or '-':>13}\n"
        )
