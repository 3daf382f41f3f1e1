"""Settings of `config.json` that change a model's result and that the decoder here does not compute."""

from __future__ import annotations

from collections.abc import Iterator

from fd_core.api.dtype import FLOATS
from fd_core.layers.rotary import RotaryError, frequencies, rotary_dim
from fd_core.models.config import ModelConfig

#: Keys and the values at which they do nothing (a missing key or null always does nothing).
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "clip_qkv": (),
    "attention_multiplier": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "logits_scaling": (1,),
    "query_pre_attn_scalar": (),
    "compression_ratio": (1,),
    "use_qk_norm": (False,),
    "cross_attention_layers": ([],),
    "num_nextn_predict_layers": (0,),
}


def common_limits(config: ModelConfig) -> Iterator[str]:
    """Everything in `config` that the decoder would get wrong."""
    yield from _settings(config)
    yield from _sizes(config)
    if config.hidden_act not in ("silu", "swish"):
        yield f"hidden_act: want silu, have {config.hidden_act!r}"
    if config.dtype not in {str(d) for d in FLOATS}:
        yield f"dtype: want one of {', '.join(map(str, FLOATS))}, have {config.dtype!r}"
    yield from _rotary(config)
    kinds = set(config.layer_types or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        yield f"layer_types: want full_attention or sliding_attention, have {', '.join(sorted(kinds))}"


def _settings(config: ModelConfig) -> Iterator[str]:
    for key, neutral in _NEUTRAL.items():
        value = config.raw.get(key)
        if value is not None and value not in neutral:
            want = " or ".join(["null", *map(repr, neutral)])
            yield f"{key}: want {want}, have {value!r}"


def _sizes(config: ModelConfig) -> Iterator[str]:
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        yield f"num_attention_heads: want a multiple of num_key_value_heads ({groups}), have {heads}"
    if config.head_dim % 2:
        yield f"head_dim: want an even number, have {config.head_dim}"
    if config.layer_types is not None and len(config.layer_types) != config.num_hidden_layers:
        yield f"layer_types: want {config.num_hidden_layers} entries, have {len(config.layer_types)}"
    if config.use_sliding_window and config.sliding_window is None:
        yield "sliding_window: want a number of tokens with use_sliding_window, have null"


def _rotary(config: ModelConfig) -> Iterator[str]:
    try:
        frequencies(config.rope, rotary_dim(config.rope, config.head_dim), config.max_model_len)
    except RotaryError as error:
        yield f"rope_parameters: {error}"


def dense_only(config: ModelConfig) -> Iterator[str]:
    """For families without experts."""
    if config.num_experts:
        yield f"num_experts: want 0 for a dense model, have {config.num_experts}"
