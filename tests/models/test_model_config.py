"""config.json in its several forms, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fd_core.models.config import load_config, merged_ids, parse_config
from fd_core.models.errors import ConfigError
from fd_core.models.limits import common_limits, dense_only
from fd_core.models.registry import BUILT_IN, resolve

RAW: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
    "eos_token_id": 7,
}


def config(**changes: Any) -> Any:
    return parse_config({**RAW, **changes})


def test_sizes_and_defaults() -> None:
    parsed = config()
    assert (parsed.head_dim, parsed.num_key_value_heads, parsed.max_model_len) == (8, 2, 512)
    assert parsed.dtype == "bfloat16"
    assert parsed.eos_token_ids == (7,)
    assert not parsed.tie_word_embeddings
    assert config(num_key_value_heads=None).num_key_value_heads == 8
    assert config(head_dim=16).head_dim == 16
    assert config(dtype="float16", torch_dtype=None).dtype == "float16"
    assert config(num_local_experts=6).num_experts == 6


def test_both_forms_of_rotary_settings_are_one() -> None:
    scaling = {"factor": 2.0, "rope_type": "linear"}
    old = config(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}).rope
    new = config(rope_parameters={**scaling, "rope_theta": 5e5}).rope
    assert old == new
    assert old["rope_type"] == "linear"
    assert old["rope_theta"] == 5e5
    assert config().rope["rope_type"] == "default"
    assert config(partial_rotary_factor=0.5).rope["partial_rotary_factor"] == 0.5


def test_a_missing_key_means_what_it_means_in_its_family() -> None:
    ernie = config(model_type="ernie4_5")
    assert ernie.tie_word_embeddings
    assert (ernie.head_dim, ernie.rope["rope_theta"], ernie.rms_norm_eps) == (128, 500_000.0, 1e-5)
    assert not config(model_type="ernie4_5", tie_word_embeddings=False).tie_word_embeddings
    assert config(model_type="qwen3").head_dim == 128
    assert config(model_type="qwen3", head_dim=8).head_dim == 8


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        ({"rope_type": "default"}, 512),
        ({"rope_type": "linear", "factor": 4.0}, 2048),
        ({"rope_type": "dynamic", "factor": 2.0}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "llama3", "factor": 8.0}, 512),
    ],
)
def test_length_the_positions_reach(rope: dict[str, Any], length: int) -> None:
    assert config(rope_parameters=rope).max_model_len == length


def test_the_user_may_shorten_and_not_lengthen() -> None:
    assert parse_config(RAW, max_model_len=100).max_model_len == 100
    for wanted in (513, 0, -1):
        with pytest.raises(ConfigError, match=f"max_model_len: want 1..512.*have {wanted}"):
            parse_config(RAW, max_model_len=wanted)


def test_dynamic_scaling_starts_when_asked_for() -> None:
    raw = {**RAW, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}
    assert parse_config(raw, max_model_len=1024).max_model_len == 1024
    with pytest.raises(ConfigError, match=r"want 1\.\.1024"):
        parse_config(raw, max_model_len=1025)


def test_end_tokens_of_both_files_are_merged(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**RAW, "eos_token_id": [7, 8]}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    assert load_config(tmp_path).eos_token_ids == (7, 8, 9)
    assert merged_ids(None, 0, [0, 3]) == (0, 3)


def test_windows_by_layer() -> None:
    def windows(**changes: Any) -> list[int | None]:
        parsed = config(sliding_window=16, **changes)
        return [parsed.window(layer) for layer in range(4)]

    assert windows() == [None] * 4
    assert windows(use_sliding_window=False) == [None] * 4
    assert windows(use_sliding_window=True, max_window_layers=3) == [None, None, None, 16]
    kinds = ["sliding_attention", "full_attention"] * 2
    assert windows(layer_types=kinds) == [16, None, 16, None]
    assert windows(layer_types=kinds, use_sliding_window=False) == [None] * 4


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"vocab_size": None}, "vocab_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": -3}, "vocab_size: .*greater than 0.*have -3"),
        ({"intermediate_size": "wide"}, "intermediate_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"architectures": None}, "architectures"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "one flat object"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config(**changes)


@pytest.mark.parametrize("text", ["", "[1]", "{", '"x"'])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config.json: want a JSON object"):
        load_config(tmp_path)


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; want a model folder"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hidden_act": "gelu"}, "hidden_act: want silu, have 'gelu'"),
        ({"dtype": "int8", "torch_dtype": None}, "dtype: want one of .*bfloat16.*have 'int8'"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "want a multiple of num_key_value_heads"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type: want one of .*have 'longrope'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "want a number > 0 for 'factor'"),
        ({"layer_types": ["linear_attention"] * 4}, "layer_types: want full_attention"),
        ({"layer_types": ["full_attention"]}, "layer_types: want 4 entries, have 1"),
        ({"use_sliding_window": True}, "sliding_window: want a number"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping: want null or 0, have 30.0"),
        ({"residual_multiplier": 0.2}, "residual_multiplier"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(changes: dict[str, Any], why: str) -> None:
    found = list(common_limits(config(**changes)))
    assert len(found) == 1
    assert re.search(why, found[0])


def test_an_odd_head_is_refused() -> None:
    found = list(common_limits(config(head_dim=9)))
    assert "head_dim: want an even number, have 9" in found


def test_neutral_settings_pass() -> None:
    neutral = {"attn_logit_softcapping": None, "residual_multiplier": 1.0, "compression_ratio": 1.0}
    assert list(common_limits(config(**neutral))) == []
    assert list(dense_only(config())) == []
    assert list(dense_only(config(num_experts=4))) != []


def test_every_built_in_architecture_resolves() -> None:
    for name in BUILT_IN:
        assert resolve([name]).__name__ == BUILT_IN[name].split(":")[1]
    assert resolve(["Unknown", "LlamaForCausalLM"]).__name__ == "LlamaForCausalLM"


def test_an_unknown_architecture_lists_what_is_there() -> None:
    with pytest.raises(ConfigError, match=r"want one of .*LlamaForCausalLM.*MyLM.*; have Mamba"):
        resolve(["Mamba"], {"MyLM": "x:y"})
    with pytest.raises(ConfigError, match="have none"):
        resolve([])


def test_plug_ins_bring_architectures_and_their_failures_are_named() -> None:
    extra = {"Mine": "fd_core.models.llama:LlamaForCausalLM"}
    assert resolve(["Mine"], extra).__name__ == "LlamaForCausalLM"
    for target, why in (("no_such_module:X", "cannot be imported"), ("json:JSONDecoder", "no subclass")):
        with pytest.raises(ConfigError, match=f"architecture Mine: .*{why}"):
            resolve(["Mine"], {"Mine": target})
