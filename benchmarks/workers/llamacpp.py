"""llama.cpp through llama-cpp-python's low-level calls, float16 cache; weights as the file has them."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np

from workers import CONTEXT, prompt_ids, serve

BATCH = 2048


class LlamaWorker:
    def __init__(self, path: str) -> None:
        llama_cpp.llama_backend_init()
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = CONTEXT, BATCH, 512, 8
        params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
        params.kv_unified = True  # one pool for all sequences, so that one may be long
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def prefill(self, tokens: int) -> float:
        llama_cpp.llama_memory_clear(self.memory, False)
        started = time.perf_counter()
        self._prompt(prompt_ids(tokens), 0)
        return time.perf_counter() - started

    def decode(self, batch: int, context: int, steps: int) -> float:
        llama_cpp.llama_memory_clear(self.memory, False)
        tokens = [self._prompt(prompt_ids(context, seed=i + 1), i) for i in range(batch)]
        started = time.perf_counter()
        for step in range(steps):
            self._run([(token, context + step, i, True) for i, token in enumerate(tokens)])
            tokens = [self._argmax(i) for i in range(batch)]
        return time.perf_counter() - started

    def _prompt(self, ids: list[int], sequence: int) -> int:
        for start in range(0, len(ids), 512):
            part = ids[start : start + 512]
            last = start + len(part) == len(ids)
            self._run([(t, start + i, sequence, last and i == len(part) - 1) for i, t in enumerate(part)])
        return self._argmax(len(part) - 1)

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        status = llama_cpp.llama_decode(self.context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")

    def _argmax(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())


if __name__ == "__main__":
    precision = Path(sys.argv[1]).stem.removeprefix("model-").replace("f16", "float16")
    about = {"peer": "llama.cpp", "precision": precision, "version": llama_cpp.__version__}
    serve(lambda: LlamaWorker(sys.argv[1]), about)
