"""Rotary settings in the two forms `config.json` files use, as one dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fd_core.models.errors import ConfigError

_THETA = 10000.0


def parse_rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` (newer) or `rope_theta` and `rope_scaling` (older) -> `rope_type`,
    `rope_theta`, `partial_rotary_factor` and the scaling's own keys."""
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(given, Mapping) or any(isinstance(v, Mapping) for v in given.values()):
        raise ConfigError(f"rope_parameters: want one flat object for all layers, have {given!r}")
    rope = {k: v for k, v in given.items() if v is not None}
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type") or "default"
    rope.setdefault("rope_theta", raw.get("rope_theta") or _THETA)
    partial = raw.get("partial_rotary_factor")
    rope.setdefault("partial_rotary_factor", 1.0 if partial is None else partial)
    rope["max_position_embeddings"] = raw["max_position_embeddings"]
    return rope
