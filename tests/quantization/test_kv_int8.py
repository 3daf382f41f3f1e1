"""An int8 KV cache: a scale per head and token beside the codes, and what it costs."""

from __future__ import annotations

import math

import pytest
from integer import make

from fd_core.api import dtype as dt
from fd_core.engine.build import EMBEDDED, build_model, cache_dtype
from fd_core.engine.config import EngineConfig
from fd_core.host.session import open_session
from fd_core.llm import LLM, SamplingParams

WINDOW = 1024
#: The most that perplexity may rise.
BOUND = 0.003


def perplexity(kv_cache_dtype: str) -> float:
    llm = LLM("", kv_cache_dtype=kv_cache_dtype, enable_prefix_caching=False)
    ids = llm.tokenizer.encode((EMBEDDED / "heldout.txt").read_text(encoding="utf-8")[:40_000])
    windows = [[0, *ids[i : i + WINDOW]] for i in range(0, len(ids), WINDOW)]
    results = llm.generate(windows, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0))
    scores = [p.logprob for r in results for p in r.prompt_logprobs or [] if p is not None]
    assert len(scores) == len(ids)
    return math.exp(-math.fsum(scores) / len(scores))


@pytest.fixture(autouse=True)
def library() -> None:
    make("wint8")  # skips where fd-cpu has none


def test_loss_of_quality() -> None:
    plain, int8 = perplexity("auto"), perplexity("int8")
    assert int8 != plain
    assert int8 / plain - 1 <= BOUND


def test_a_block_holds_codes_and_scales() -> None:
    """Two heads of 64, four bytes of scale each: (64 + 4) / 128 of a 16-bit cache."""
    sizes = {}
    for name in ("bfloat16", "int8"):
        model = build_model(EngineConfig(kv_cache_dtype=name, block_size=32), open_session())
        sizes[name] = model.kv_layouts()[0].bytes_per_block
    assert sizes == {"bfloat16": 2 * 2 * 32 * 64 * 2, "int8": 2 * 2 * 32 * (64 + 4)}


def test_the_same_text_alone_and_batched() -> None:
    llm = LLM("", kv_cache_dtype="int8")
    prompts = ["The project is", "A network", "In the beginning there was"]
    params = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
    batched = [r.outputs[0].token_ids for r in llm.generate(prompts, params)]
    alone = [llm.generate([p], params)[0].outputs[0].token_ids for p in prompts]
    assert batched == alone


@pytest.mark.parametrize(
    ("asked", "quantised", "want"),
    [
        ("auto", "", dt.bfloat16),
        ("auto", "int8", dt.int8),
        ("float32", "int8", dt.float32),
        ("int8", "", dt.int8),
    ],
)
def test_the_users_word_then_the_quantisations(asked: str, quantised: str, want: dt.DType) -> None:
    assert cache_dtype(EngineConfig(kv_cache_dtype=asked), dt.bfloat16, quantised) == want
