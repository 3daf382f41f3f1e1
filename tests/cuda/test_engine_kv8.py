"""The engine on a GPU with a KV cache of codes: the oracles' text, and what the cache takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fd_cuda")
from fd_core.engine.build import BuiltEngine, build_engine
from fd_core.engine.config import EngineConfig
from fd_core.engine.request import EngineRequest, SamplingParams
from tests.cuda.gpu import gpu_session
from tests.worker.conftest import CONFIG
from tests.worker.model_runner import collect

pytestmark = pytest.mark.device("cuda")
Build = Callable[..., BuiltEngine]
Log = dict[str, list[float]]
both = pytest.mark.parametrize("codes", ["int8", "float8_e4m3fn"])


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Engines over the same random weights; an output head of its own, so that texts vary."""
    gpu_session("paged_attention_step")
    folder: Path = tmp_path_factory.mktemp("tiny-model")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "tie_word_embeddings": False}))

    def made(**options: Any) -> BuiltEngine:
        given = {"platform": "cuda", "block_size": 16, "max_num_seqs": 8, "max_num_batched_tokens": 64}
        given |= {"kv_cache_dtype": "int8", "seed": 1, **options}
        return build_engine(EngineConfig(model=str(folder), load_format="dummy", **given))

    return made


def texts(built: BuiltEngine, length: int = 16) -> tuple[dict[str, list[int]], Log]:
    """Greedy tokens and their log-probabilities, by request; prompts of less and more than a chunk."""
    greedy = SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True, logprobs=0)
    for i, n in enumerate((1, 9, 40, 90)):
        prompt = [(7 * i + 11 * j) % 499 for j in range(n)]
        built.engine.add_request(EngineRequest(request_id=str(i), prompt_token_ids=prompt, params=greedy))
    tokens: dict[str, list[int]] = {}
    logs: Log = {}
    for (name, _), news in collect(built.engine).items():
        tokens[name] = [token for ids, _ in news for token in ids]
        logs[name] = [entry[0] for _, entries in news for entry in entries]
    return tokens, logs


def apart(a: Log, b: Log) -> float:
    return max(abs(x - y) for name in a for x, y in zip(a[name], b[name], strict=True))


@both
@pytest.mark.parametrize("graphs", [False, True])
def test_the_text_is_the_oracles(make: Build, codes: str, graphs: bool) -> None:
    """float32 sums of another order move log-probabilities by 1e-6 or, where a code falls to the other
    side of a tie, by a hundredth of what rounding all keys and values to codes does: 1e-3."""
    cache = {"dtype": "float32", "kv_cache_dtype": codes}
    want, exact = texts(make(platform="reference", **cache))
    got, logs = texts(make(enable_graphs=graphs, **cache))
    assert got == want
    assert apart(logs, exact) < 1e-4
    _, unrounded = texts(make(dtype="float32", kv_cache_dtype="auto"))
    assert apart(logs, unrounded) > 1e-4


@both
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_follows_a_prompt_is_as_likely_as_the_oracles_say(make: Build, codes: str, dtype: str) -> None:
    """Activations of 8 or 11 bits through two layers: log-probabilities of -6 within 2 %."""
    cache = {"dtype": dtype, "kv_cache_dtype": codes}
    want, exact = texts(make(platform="reference", **cache), 1)
    got, logs = texts(make(**cache), 1)
    assert got == want
    assert apart(logs, exact) < 0.12


def test_decoding_is_the_same_from_graphs(make: Build) -> None:
    assert texts(make(enable_graphs=True)) == texts(make(enable_graphs=False))


def test_blocks_cost_what_codes_and_scales_do(make: Build) -> None:
    """Of 2 heads of 16 in bfloat16: a row of 20 bytes for one of 32."""
    layouts = [make(kv_cache_dtype=name).model.kv_layouts()[0] for name in ("int8", "bfloat16")]
    assert [layout.bytes_per_block for layout in layouts] == [2 * 2 * 16 * 20, 2 * 2 * 16 * 32]
