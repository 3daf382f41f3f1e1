"""A random-weight model small enough for thousands of steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fd_core.engine.build import BuiltEngine, build_engine
from fd_core.engine.config import EngineConfig

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 500,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 499,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="session")
def build(tiny_folder: Path) -> Callable[..., BuiltEngine]:
    """An engine over the same random weights each time; options are fields of EngineConfig."""

    def make(**options: Any) -> BuiltEngine:
        given = {"block_size": 8, "max_num_seqs": 8, "max_num_batched_tokens": 64, "seed": 1, **options}
        return build_engine(EngineConfig(model=str(tiny_folder), load_format="dummy", **given))

    return make
