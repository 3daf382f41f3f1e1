"""Sampling defaults a model brings in `generation_config.json`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fd_core.serving.inputs.chat_template import read_json


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Used where a request says nothing. `do_sample: false` means temperature 0."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def load(cls, folder: str | Path) -> GenerationDefaults:
        return cls.parse(read_json(Path(folder) / "generation_config.json"))

    @classmethod
    def parse(cls, config: dict[str, Any]) -> GenerationDefaults:
        eos = config.get("eos_token_id")
        eos_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
        new_tokens = config.get("max_new_tokens")
        greedy = config.get("do_sample") is False
        return cls(
            temperature=0.0 if greedy else _number(config, "temperature", 1.0),
            top_p=_number(config, "top_p", 1.0),
            top_k=int(_number(config, "top_k", 0)),
            min_p=_number(config, "min_p", 0.0),
            repetition_penalty=_number(config, "repetition_penalty", 1.0),
            max_tokens=int(new_tokens) if new_tokens else None,
            eos_token_ids=eos_ids,
        )


def _number(config: dict[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"generation_config.json: {key}: want a finite number, found {value!r}")
    return float(value)
