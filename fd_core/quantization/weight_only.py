"""`quantization_config` of int4 checkpoints by AutoAWQ ("awq") and by AutoGPTQ and GPTQModel ("gptq")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What config.json calls them.
NAMES = ("awq", "gptq")
METHOD = "wint4"
FIX = "take a checkpoint of another kind, or convert the 16-bit one with fd quantize"


def described(name: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The method and its options; ValueError says the first thing that is not read, as "want ..., have
    ..."."""
    found = _awq(config) if name == "awq" else _gptq(config)
    return METHOD, {**config, "is_quantized": True, "moe_quant_type": METHOD, **found}


def _awq(config: Mapping[str, Any]) -> dict[str, Any]:
    _want("bits", config.get("bits", config.get("w_bit")), 4)
    _want("version", str(config.get("version", "gemm")).lower(), "gemm")
    return {
        "forms": {METHOD: "awq"},
        "group_size": config.get("group_size", config.get("q_group_size", 128)),
        "zero_point": config.get("zero_point", True),
        "lm_head": "none",
    }


def _gptq(config: Mapping[str, Any]) -> dict[str, Any]:
    _want("bits", config.get("bits"), 4)
    _want("desc_act", config.get("desc_act", False), False)
    _want("dynamic", config.get("dynamic") or None, None)
    _want("pack_dtype", config.get("pack_dtype") or "int32", "int32")
    _want("is_marlin_format", config.get("is_marlin_format", False), False)
    form = config.get("checkpoint_format") or config.get("format") or "gptq"
    _want("checkpoint_format", form, "gptq", "gptq_v2")
    return {
        "forms": {METHOD: form},
        "group_size": config.get("group_size", 128),
        "zero_point": not config.get("sym", True),
        "lm_head": METHOD if config.get("lm_head") else "none",
    }


def _want(key: str, have: Any, *allowed: Any) -> None:
    if have not in allowed:
        raise ValueError(f"{key}: want {' | '.join(map(repr, allowed))}, have {have!r}")
