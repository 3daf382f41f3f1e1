"""onnxruntime-genai: a folder of `python -m onnxruntime_genai.models.builder`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og

from workers import prompt_ids, serve


class OrtWorker:
    def __init__(self, folder: str) -> None:
        config = og.Config(folder)
        options = {"intra_op_num_threads": len(os.sched_getaffinity(0))}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = og.Model(config)

    def prefill(self, tokens: int) -> float:
        started = time.perf_counter()
        self._first([prompt_ids(tokens)], 1)
        return time.perf_counter() - started

    def decode(self, batch: int, context: int, steps: int) -> float:
        generator = self._first([prompt_ids(context, seed=i + 1) for i in range(batch)], steps + 1)
        started = time.perf_counter()
        for _ in range(steps):
            generator.generate_next_token()
        return time.perf_counter() - started

    def _first(self, prompts: list[list[int]], count: int) -> Any:
        """A generator that has made the first of `count` tokens of each prompt."""
        params = og.GeneratorParams(self.model)
        length = len(prompts[0]) + count
        # One token more than is made, so that the last one is not the end.
        sizes = {"max_length": length + 1, "min_length": length + 1, "batch_size": len(prompts)}
        params.set_search_options(do_sample=False, **sizes)
        generator = og.Generator(self.model, params)
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        generator.generate_next_token()
        return generator


if __name__ == "__main__":
    precision = Path(sys.argv[1]).name.rpartition("-")[2]
    about = {"peer": "onnxruntime-genai", "precision": precision, "version": og.__version__}
    serve(lambda: OrtWorker(sys.argv[1]), about)
