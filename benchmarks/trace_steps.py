"""Where a decode step's time goes: the host's own work, waiting for tokens, and what the platform is asked.

    python benchmarks/trace_steps.py [--platform NAME] [--shape tiny|1b|8b] [--batches 1,64] [--context 512]
                                     [--steps 100] [--modes on+graphs,on,off+graphs,off] [--out FILE]

Random weights. `on` and `off` are `async_scheduling`; `graphs` captures decode steps. Per step, medians in
milliseconds: `wall`; `wait`, inside `Event.wait`, which in steady decoding is for the tokens of the step
before; `host`, the rest. `calls` per step: copies that queue (`copy`), calls that wait (`copy_`, `to_host`,
`synchronize`) and allocations. With look-ahead the device never waits for the host as long as `wait` > 0.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from fd_core.engine.build import assemble, build_model, plan_memory
from fd_core.engine.config import EngineConfig
from fd_core.engine.engine import Engine
from fd_core.engine.request import EngineRequest, SamplingParams
from fd_core.host.session import Session, open_session
from fd_core.models.base import CausalLM

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
SHAPES: dict[str, tuple[int, int, int, int, int, int, int]] = {
    # hidden, intermediate, layers, heads, key heads, head dim, vocabulary
    "tiny": (256, 512, 4, 4, 2, 64, 1000),
    "1b": (2048, 8192, 16, 32, 8, 64, 128256),
    "8b": (4096, 14336, 32, 32, 8, 128, 128256),
}


class Trace:
    """Counts and times what one platform is asked, from when it is made."""

    def __init__(self, session: Session) -> None:
        self.calls: Counter[str] = Counter()
        self.waited = 0.0
        platform, transfers = type(session.platform), session.platform.transfers()
        for name in ("copy_", "to_host", "synchronize", "empty", "from_host"):
            self._wrap(platform, name)
        self._wrap(type(transfers), "copy")
        self._time(type(transfers.event()))

    def _wrap(self, owner: type, name: str) -> None:
        plain = getattr(owner, name)

        def counted(*args: Any) -> Any:
            self.calls[name] += 1
            return plain(*args)

        setattr(owner, name, counted)

    def _time(self, owner: type) -> None:
        plain = owner.wait

        def timed(event: Any) -> None:
            started = time.perf_counter()
            plain(event)
            self.waited += time.perf_counter() - started

        owner.wait = timed


def config(shape: str) -> dict[str, Any]:
    hidden, wide, layers, heads, groups, dim, vocab = SHAPES[shape]
    return LLAMA | {
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": dim,
        "vocab_size": vocab,
    }


class Bench:
    """One model; an engine over it for each mode."""

    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        self.options = options
        batches = [int(batch) for batch in options.batches.split(",")]
        self.config = EngineConfig(
            model=folder,
            platform=options.platform,
            load_format="dummy",
            max_num_seqs=max(batches),
            max_num_batched_tokens=max(2048, *batches),
            max_model_len=options.context + options.steps + 128,
            enable_prefix_caching=False,
        )
        self.session = open_session(options.platform or None)
        self.model: CausalLM = build_model(self.config, self.session)
        self.trace = Trace(self.session)

    def engine(self, mode: str) -> Engine:
        given = {"async_scheduling": mode.removesuffix("+graphs"), "enable_graphs": "graphs" in mode}
        changed = msgspec.structs.replace(self.config, **given)
        length, blocks = plan_memory(changed, self.session, self.model)
        return assemble(changed, self.session, self.model, length, blocks)

    def measure(self, engine: Engine, batch: int, sampling: dict[str, Any]) -> dict[str, Any]:
        context, steps = self.options.context, self.options.steps
        params = SamplingParams(max_tokens=steps + 64, ignore_eos=True, **sampling)
        for i in range(batch):
            prompt = [(i * 31 + j * 7) % 900 for j in range(context)]
            engine.add_request(EngineRequest(request_id=str(i), prompt_token_ids=prompt, params=params))
        running = engine.scheduler.running
        while not (len(running) == batch and all(s.num_generated > 3 for s in running)):
            engine.step()
        self.trace.calls.clear()
        rows = [self._step(engine) for _ in range(steps)]
        calls = {name: round(n / steps, 2) for name, n in sorted(self.trace.calls.items())}
        tokens = {s.request.request_id: tuple(s.tokens[context : context + steps]) for s in running}
        for i in range(batch):
            engine.abort(str(i))
        while engine.has_work:
            engine.step()
        wall, wait = (statistics.median(column) for column in zip(*rows, strict=True))
        times = {"wall_ms": wall, "wait_ms": wait, "host_ms": statistics.median(a - b for a, b in rows)}
        return {name: round(ms, 4) for name, ms in times.items()} | {"calls": calls, "_tokens": tokens}

    def _step(self, engine: Engine) -> tuple[float, float]:
        self.trace.waited = 0.0
        started = time.perf_counter()
        engine.step()
        return (time.perf_counter() - started) * 1e3, self.trace.waited * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--platform", default="")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--batches", default="1,64")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--modes", default="on+graphs,on,off+graphs,off")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config(options.shape)))
        bench = Bench(options, folder)
        rows = run(bench, options)
    if options.out:
        facts = {"device": bench.session.device.name, "shape": options.shape, "context": options.context}
        options.out.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")
    return 0


def run(bench: Bench, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    first: dict[Any, Any] = {}
    for mode in options.modes.split(","):
        engine = bench.engine(mode)
        for batch in map(int, options.batches.split(",")):
            for name, sampling in (("greedy", {"temperature": 0.0}), ("top-p", {"top_p": 0.9, "seed": 1})):
                row = {"mode": mode, "batch": batch, "sampling": name}
                row |= bench.measure(engine, batch, sampling)
                tokens = row.pop("_tokens")
                row["same_tokens"] = first.setdefault((batch, name), tokens) == tokens
                rows.append(row)
                sys.stdout.write(json.dumps(row) + "\n")
                sys.stdout.flush()
        del engine
        gc.collect()
    return rows


if __name__ == "__main__":
    sys.exit(main())
