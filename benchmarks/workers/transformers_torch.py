"""transformers on torch's CPU build. `BENCH_DTYPE`: bfloat16 or float32."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
import transformers

from workers import prompt_ids, serve


class TorchWorker:
    def __init__(self, folder: str, dtype: str) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.set_grad_enabled(False)
        kind = getattr(torch, dtype)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()

    def prefill(self, tokens: int) -> float:
        started = time.perf_counter()
        self._run(torch.tensor([prompt_ids(tokens)]), None)
        return time.perf_counter() - started

    def decode(self, batch: int, context: int, steps: int) -> float:
        ids = torch.tensor([prompt_ids(context, seed=i + 1) for i in range(batch)])
        token, cache = self._run(ids, None)
        started = time.perf_counter()
        for _ in range(steps):
            token, cache = self._run(token, cache)
        return time.perf_counter() - started

    def _run(self, ids: Any, cache: Any) -> tuple[Any, Any]:
        out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1:].argmax(-1), out.past_key_values


if __name__ == "__main__":
    precision = os.environ.get("BENCH_DTYPE", "float32")
    version = f"torch {torch.__version__}, transformers {transformers.__version__}"
    serve(
        lambda: TorchWorker(sys.argv[1], precision),
        {"peer": "torch", "precision": precision, "version": version},
    )
