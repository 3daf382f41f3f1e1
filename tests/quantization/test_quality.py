"""What each method costs the embedded model: perplexity on text it has not seen, against 16 bit."""

from __future__ import annotations

import json
import math

import pytest
from integer import make

from fd_core.engine.build import EMBEDDED
from fd_core.llm import LLM, SamplingParams

WINDOW = 1024
END_OF_TEXT = 0
#: The most that perplexity may rise. Rounding to the nearest of 16 levels costs a model of 6.5 million
#: parameters, trained to saturation, an eighth (a large one, far less): these bounds hold what is reached.
BOUNDS = [
    ("wint8", {}, 0.003),
    ("w8a8", {}, 0.003),
    ("wint4", {"group_size": 32}, 0.10),
    ("wint4", {"group_size": 64}, 0.125),
    ("wint4", {"group_size": 64, "lm_head": "w8a8"}, 0.12),
    ("w4a8", {"group_size": 32}, 0.10),
    ("w4a8", {"group_size": 64}, 0.125),
]


def perplexity(quantization: str) -> float:
    """Disjoint windows over the held-out sample, each token scored once."""
    llm = LLM(quantization=quantization, enable_prefix_caching=False)
    ids = llm.tokenizer.encode((EMBEDDED / "heldout.txt").read_text(encoding="utf-8")[:40_000])
    windows = [[END_OF_TEXT, *ids[i : i + WINDOW]] for i in range(0, len(ids), WINDOW)]
    results = llm.generate(windows, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0))
    scores = [p.logprob for r in results for p in r.prompt_logprobs or [] if p is not None]
    assert len(scores) == len(ids)
    return math.exp(-math.fsum(scores) / len(scores))


@pytest.fixture(scope="module")
def plain() -> float:
    make("wint8")  # skips where fd-cpu has no library
    return perplexity("none")


@pytest.mark.parametrize(("method", "options", "bound"), BOUNDS, ids=str)
def test_loss_of_quality(plain: float, method: str, options: dict[str, object], bound: float) -> None:
    rise = perplexity(json.dumps({"quantization": method, **options})) / plain - 1
    assert rise <= bound
    assert rise != 0, "nothing was quantised"
