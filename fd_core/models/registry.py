"""Model architectures by the name `config.json` uses; plug-ins add theirs as data."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

from fd_core.models.base import CausalLM
from fd_core.models.errors import ConfigError

#: "module:class", imported only when used.
BUILT_IN: dict[str, str] = {
    "LlamaForCausalLM": "fd_core.models.llama:LlamaForCausalLM",
    "Qwen2ForCausalLM": "fd_core.models.qwen2:Qwen2ForCausalLM",
    "Qwen3ForCausalLM": "fd_core.models.qwen3:Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM": "fd_core.models.qwen3_moe:Qwen3MoeForCausalLM",
    "Ernie4_5ForCausalLM": "fd_core.models.ernie4_5:Ernie4_5ForCausalLM",
    "Ernie4_5_ForCausalLM": "fd_core.models.ernie4_5:Ernie4_5ForCausalLM",
}


def resolve(architectures: Sequence[str], extra: Mapping[str, str] | None = None) -> type[CausalLM]:
    """The class of the first architecture that is known; `extra` (plug-ins) beats the built-in ones."""
    known = BUILT_IN | dict(extra or {})
    for name in architectures:
        if name in known:
            return _import(name, known[name])
    have = ", ".join(architectures) or "none"
    raise ConfigError(f"architectures: want one of {', '.join(sorted(known))}; have {have}")


def _import(name: str, target: str) -> type[CausalLM]:
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"architecture {name}: {target!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, CausalLM)):
        raise ConfigError(f"architecture {name}: {target!r} is no subclass of CausalLM")
    return found
