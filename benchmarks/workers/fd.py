"""fd-core with the platform it finds. `BENCH_DTYPE`: auto (bfloat16), float16, float32."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

from fd_core.engine.build import assemble, build_model
from fd_core.engine.config import EngineConfig
from fd_core.engine.engine import Engine
from fd_core.engine.request import EngineRequest, SamplingParams
from fd_core.host.session import open_session
from workers import CONTEXT, prompt_ids, serve


class FdWorker:
    """The real engine: scheduler, runner and greedy sampler are all in the time."""

    def __init__(self, folder: str) -> None:
        config = EngineConfig(
            model=folder,
            dtype=os.environ.get("BENCH_DTYPE", "auto"),
            max_model_len=CONTEXT,
            max_num_seqs=8,
            max_num_batched_tokens=512,
            enable_prefix_caching=False,
        )
        session = open_session()
        model = build_model(config, session)
        self.engine: Engine = assemble(config, session, model, CONTEXT, 8 * CONTEXT // config.block_size)
        self.count = 0

    def prefill(self, tokens: int) -> float:
        started = time.perf_counter()
        self._add(prompt_ids(tokens), 1)
        self._finish()
        return time.perf_counter() - started

    def decode(self, batch: int, context: int, steps: int) -> float:
        for i in range(batch):
            self._add(prompt_ids(context, seed=i + 1), steps + 1)
        scheduler = self.engine.scheduler
        while not (len(scheduler.running) == batch and all(s.in_decode for s in scheduler.running)):
            self.engine.step()
        done = min(s.num_generated for s in scheduler.running)
        started = time.perf_counter()
        self._finish()
        return (time.perf_counter() - started) * steps / (steps + 1 - done)

    def _add(self, ids: list[int], max_tokens: int) -> None:
        self.count += 1
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        self.engine.add_request(
            EngineRequest(request_id=str(self.count), prompt_token_ids=ids, params=params)
        )

    def _finish(self) -> None:
        while self.engine.has_work:
            self.engine.step()


if __name__ == "__main__":
    config = json.loads((Path(sys.argv[1]) / "config.json").read_text())
    method = config.get("quantization_config", {}).get("quantization")
    precision = method or os.environ.get("BENCH_DTYPE", "auto")
    serve(
        lambda: FdWorker(sys.argv[1]),
        {"peer": "fd-core", "precision": precision, "version": version("fd-core")},
    )
