"""CTranslate2, int8 weights and activations: a folder of ct2-transformers-converter --quantization int8."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ctranslate2

from workers import prompt_ids, serve


class CTranslateWorker:
    """Times of decoding lie between the first and the last token, seen by the step callback."""

    def __init__(self, folder: str) -> None:
        threads = len(os.sched_getaffinity(0))
        self.generator = ctranslate2.Generator(folder, device="cpu", intra_threads=threads, inter_threads=1)
        self.vocabulary = json.loads((Path(folder) / "vocabulary.json").read_text())

    def prefill(self, tokens: int) -> float:
        started = time.perf_counter()
        self._generate([prompt_ids(tokens)], 1)
        return time.perf_counter() - started

    def decode(self, batch: int, context: int, steps: int) -> float:
        seen: list[float] = []
        prompts = [prompt_ids(context, seed=i + 1) for i in range(batch)]
        self._generate(prompts, steps + 1, callback=lambda _: bool(seen.append(time.perf_counter())))
        return seen[-1] - seen[batch - 1]

    def _generate(self, prompts: list[list[int]], count: int, **more: Any) -> None:
        texts = [[self.vocabulary[i] for i in ids] for ids in prompts]
        self.generator.generate_batch(
            texts,
            max_length=count,
            min_length=count,
            include_prompt_in_result=False,
            sampling_topk=1,
            beam_size=1,
            end_token=[],
            **more,
        )


if __name__ == "__main__":
    about = {"peer": "CTranslate2", "precision": "int8", "version": ctranslate2.__version__}
    serve(lambda: CTranslateWorker(sys.argv[1]), about)
