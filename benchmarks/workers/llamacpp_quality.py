"""llama.cpp's formats: quantise a float16 GGUF file and score tokens.

    python -m workers.llamacpp_quality F16.gguf FORMAT OUT.gguf < request.json

FORMAT: f16 (the file itself), or one that `llamacpp_quantize` knows. The request is {text: [window of
token ids, ...]}; the answer {"scores": {text: sum of negative log-probabilities}, "tensors": {type: count
of matrices}, ...}. A window's first token is context and not scored. The cache is float16, its default.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

from workers.llamacpp_quantize import quantize

Array = np.ndarray[Any, Any]


class Scorer:
    def __init__(self, path: Path, longest: int) -> None:
        model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = longest + 1
        params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
        self.context = llama_cpp.llama_init_from_model(model, params)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(longest + 1, 0, 1)

    def score(self, window: list[int]) -> float:
        """Sum of negative log-probabilities of all tokens but the first."""
        llama_cpp.llama_memory_clear(self.memory, False)
        batch, ids = self.batch, window[:-1]
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, True
        status = llama_cpp.llama_decode(self.context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        rows = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (len(ids), self.vocab))
        return float(-_log_softmax(rows)[np.arange(len(ids)), window[1:]].sum())


def _log_softmax(rows: Array) -> Array:
    wide = rows.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(1, keepdims=True))
    return wide


def matrix_types(path: Path) -> dict[str, int]:
    tensors = [t for t in gguf.GGUFReader(path).tensors if len(t.shape) == 2]
    return dict(Counter(t.tensor_type.name for t in tensors))


def main(source: Path, name: str, out: Path) -> None:
    llama_cpp.llama_backend_init()
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    if name == "f16":
        out = source
    else:
        quantize(source, name, out)
    request = json.load(sys.stdin)
    scorer = Scorer(out, max(len(w) for windows in request.values() for w in windows))
    scores = {text: sum(map(scorer.score, windows)) for text, windows in request.items()}
    about = {"file_bytes": out.stat().st_size, "version": llama_cpp.__version__}
    sys.stdout.write(json.dumps({"scores": scores, "tensors": matrix_types(out), **about}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
