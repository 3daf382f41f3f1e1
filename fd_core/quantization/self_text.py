"""Text that a model writes itself: what calibration reads where no other is at hand.

As in LLM-QAT (Liu et al. 2023), whose network was trained on such text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fd_core.engine.request import SamplingParams

if TYPE_CHECKING:
    from fd_core.llm import LLM

SEED = 0
#: Tokens of a sequence, where the model takes as many.
LENGTH = 512


def written(llm: LLM, tokens: int, length: int = LENGTH) -> list[list[int]]:
    """Sequences of `length` token ids, `tokens` in all or somewhat more.

    Each begins with a token drawn from the vocabulary; the others are sampled at temperature 1, past the
    ends of texts. The same ones every time on the same device and model.
    """
    count = -(-tokens // length)
    first = np.random.default_rng(SEED).integers(0, llm.tokenizer.vocab_size, count)
    params = [_params(length - 1, SEED + i) for i in range(count)]
    answers = llm.generate([[int(token)] for token in first], params)
    return [[*a.prompt_token_ids, *a.outputs[0].token_ids] for a in answers]


def _params(tokens: int, seed: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=1.0, seed=seed, ignore_eos=True)
