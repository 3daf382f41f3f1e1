"""What a model folder's `config.json` says, parsed once and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from fd_core.models.errors import ConfigError
from fd_core.models.rope import parse_rope

#: By `model_type`: what a missing key means where that differs from the fields' defaults below. Files
#: leave out values that equal their family's default.
_FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "ernie4_5": {
        "tie_word_embeddings": True,
        "rope_theta": 500_000.0,
        "rms_norm_eps": 1e-5,
        "head_dim": 128,
    },
    "qwen3": {"head_dim": 128},
}


class ModelConfig(BaseModel):
    """Sizes in elements. Keys that no model here reads are ignored; those that would change the result
    and are not implemented are refused by the model (`CausalLM.unsupported`).

    `rope`: `rope_type`, `rope_theta` and the scaling's own keys, whichever form config.json uses.
    `max_model_len`: what the positions reach (see `derived_length`), or less if the user says so.
    `raw`: the whole config.json, for models that extend this one.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    architectures: tuple[str, ...]
    model_type: str = ""
    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    hidden_act: str = "silu"
    rms_norm_eps: float = Field(default=1e-6, ge=0)
    max_position_embeddings: int = Field(gt=0)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    use_bias: bool = False
    rope: dict[str, Any]
    sliding_window: int | None = None
    use_sliding_window: bool = False
    max_window_layers: int = 28
    layer_types: tuple[str, ...] | None = None
    num_experts: int = Field(default=0, validation_alias=AliasChoices("num_experts", "num_local_experts"))
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = False
    mlp_only_layers: tuple[int, ...] = ()
    decoder_sparse_step: int = Field(default=1, gt=0)
    # The file format's older key for the weights' type carries a framework's name.
    dtype: str = Field(default="float32", validation_alias=AliasChoices("dtype", "torch_dtype"))
    weight_layout: str | None = None
    quantization_config: dict[str, Any] | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    max_model_len: int = Field(gt=0)
    raw: dict[str, Any] = Field(default_factory=dict, repr=False)

    @field_validator("mlp_only_layers", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        return () if value is None else value

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer, in tokens including the current one; None = all."""
        if self.sliding_window is None or not self.use_sliding_window:
            return None
        if self.layer_types is not None:
            return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None
        return self.sliding_window if layer >= self.max_window_layers else None


def load_config(folder: Path | str, max_model_len: int | None = None) -> ModelConfig:
    """Parse `folder`'s config.json and generation_config.json; ConfigError says what is wrong."""
    raw = _read(Path(folder) / "config.json")
    generation_file = Path(folder) / "generation_config.json"
    generation = _read(generation_file) if generation_file.is_file() else {}
    return parse_config(raw, generation, max_model_len, str(folder))


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; want a model folder in Hugging Face layout") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: want a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: want a JSON object, have {type(value).__name__}")
    return value


def parse_config(
    raw: Mapping[str, Any],
    generation: Mapping[str, Any] | None = None,
    max_model_len: int | None = None,
    where: str = "config.json",
) -> ModelConfig:
    """The configuration from already parsed JSON."""
    try:
        given = _FAMILY_DEFAULTS.get(str(raw.get("model_type")), {}) | _present(raw)
        values = given | _derived(given, generation or {})
        values["max_model_len"] = _length(values, max_model_len, where)
        return ModelConfig.model_validate(values | {"raw": dict(raw)})
    except ValidationError as error:
        rows = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (have {e['input']!r})" for e in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(r[:200] for r in rows)) from None
    except KeyError as error:
        raise ConfigError(f"{where}: the key {error} is missing") from None


def _derived(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    heads, hidden = _count(raw, "num_attention_heads"), _count(raw, "hidden_size")
    values = {
        "num_key_value_heads": raw.get("num_key_value_heads", heads),
        "head_dim": raw.get("head_dim", hidden // heads),
        "max_position_embeddings": _count(raw, "max_position_embeddings"),
        "rope": parse_rope(raw),
        "eos_token_ids": merged_ids(raw.get("eos_token_id"), generation.get("eos_token_id")),
    }
    sliding = raw.get("use_sliding_window")
    if sliding is None:  # the older form says it with the window alone, or with the layers' types
        values["use_sliding_window"] = "sliding_attention" in (raw.get("layer_types") or ())
    return values


def _present(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if value is not None}


def _count(raw: Mapping[str, Any], key: str) -> int:
    value = raw[key]
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key}: want a positive whole number, have {value!r}")
    return value


def merged_ids(*values: int | list[int] | None) -> tuple[int, ...]:
    """Token ids from several places, each one an id, a list or nothing, without repetition."""
    lists = ([v] if isinstance(v, int) else v or [] for v in values)
    return tuple(dict.fromkeys(i for ids in lists for i in ids))


def derived_length(positions: int, rope: Mapping[str, Any]) -> int:
    """Tokens the positions can reach: linear and dynamic scaling stretch `max_position_embeddings`;
    YaRN stretches its original length; llama-3's file already states the stretched one."""
    kind, factor = rope["rope_type"], float(rope.get("factor") or 1.0)
    if kind in ("linear", "dynamic"):
        return int(positions * factor)
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings") or positions
        return max(positions, int(original * factor))
    return positions


def _length(values: Mapping[str, Any], wanted: int | None, where: str) -> int:
    """Dynamic scaling changes every token's rotation with the length planned for, so that it starts
    only when the user asks for more than the trained length."""
    positions, rope = values["max_position_embeddings"], values["rope"]
    longest = derived_length(positions, rope)
    if wanted is None:
        return positions if rope["rope_type"] == "dynamic" else longest
    if not 1 <= wanted <= longest:
        raise ConfigError(
            f"{where}: max_model_len: want 1..{longest}, what the positions reach; have {wanted}"
        )
    return wanted
