"""OpenVINO GenAI on its stateful (SDPA) pipeline: a folder of `optimum-cli export openvino`.

Its pipeline has no step of its own: decoding is a whole run less the time to its first token.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import openvino
import openvino_genai

from workers import prompt_ids, serve


class OpenVINOWorker:
    def __init__(self, folder: str) -> None:
        options = {
            "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "ATTENTION_BACKEND": "SDPA",
        }
        self.pipeline = openvino_genai.LLMPipeline(folder, "CPU", **options)

    def prefill(self, tokens: int) -> float:
        return self._generate([prompt_ids(tokens)], 1)[1]

    def decode(self, batch: int, context: int, steps: int) -> float:
        prompts = [prompt_ids(context, seed=i + 1) for i in range(batch)]
        first, total = self._generate(prompts, steps + 1)
        return total - first

    def _generate(self, prompts: list[list[int]], count: int) -> tuple[float, float]:
        """Seconds to the first token and to the last."""
        ids = np.array(prompts, dtype=np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        started = time.perf_counter()
        result = self.pipeline.generate(inputs, config)
        total = time.perf_counter() - started
        lengths = [len(tokens) for tokens in result.tokens]
        if lengths != [count] * len(prompts):
            raise RuntimeError(f"want {count} tokens for each of {len(prompts)} prompts, have {lengths}")
        return result.perf_metrics.get_ttft().mean / 1e3, total


if __name__ == "__main__":
    precision = Path(sys.argv[1]).name.rpartition("-")[2]
    version = openvino_genai.__version__
    serve(
        lambda: OpenVINOWorker(sys.argv[1]),
        {"peer": "OpenVINO GenAI", "precision": precision, "version": version},
    )
