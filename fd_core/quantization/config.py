"""Which quantisation a model uses: the checkpoint's word, else the user's."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any

from fd_core.quantization import compressed_tensors, weight_only

_log = logging.getLogger("fd.quantization")

UNQUANTIZED = "none"
#: Dense layers by one method, experts by another, the KV cache by a third.
MIXED = "mix_quant"
#: What the output head is called, also where it shares the embedding table.
HEAD = "lm_head"
#: The key of the method of an embedding table that is not the head.
TABLE = "embed_tokens"
#: The key of the experts' method.
EXPERTS = "moe_quant_type"
#: The methods of the head where nothing else is said: four bits cost more there than anywhere.
_HEADS = {"wint4": "wint8", "w4a8": "w8a8"}
#: Keys under which checkpoints name the method, and those that list layers left alone.
_NAME_KEYS = ("quantization", "quant_method")
_SKIP_KEYS = ("modules_to_not_convert", "ignored_layers", "ignore", "skip")
#: What other projects call theirs, which are read as methods of ours.
PUBLIC = (compressed_tensors.NAME, *weight_only.NAMES)
#: Methods that run the same codes, activations as they are and as int8.
_SAME_CODES = {"wint4": "w4a8", "wint8": "w8a8"}
#: Before patterns that are regular expressions, from the start of the name on (compressed-tensors).
_EXPRESSION = "re:"


class QuantError(ValueError):
    """A quantisation that is unknown or badly described."""


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """`name` in the registry, the method's own `options`, and `skip`: patterns of layers (checkpoint
    prefixes, or their last parts) that stay unquantised. `from_checkpoint`: config.json says it.
    `head`: the method of the output head, where it is not `name`; the head is called lm_head in
    patterns, also where it is the embedding table. `layers`: (pattern, method) pairs for single
    layers, the first that fits. `experts`: the method of expert weights, empty for `name`. `kv_cache`: the
    type of the KV cache, empty for the model's. `table`: the method of an embedding table that is not the
    head; empty: the head's where that has lookups, else none."""

    name: str = UNQUANTIZED
    options: Mapping[str, Any] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    from_checkpoint: bool = False
    head: str = ""
    layers: tuple[tuple[str, str], ...] = ()
    experts: str = ""
    kv_cache: str = ""
    table: str = ""

    def name_for(self, prefix: str) -> str:
        """The method's name for one layer."""
        return self._named(prefix) or (self.head if self.head and prefix == HEAD else self.name)

    def name_for_experts(self, prefix: str) -> str:
        """That of the experts of a layer, which go as one: by the name of all, or that of the first one's
        first matrix."""
        return self._named(prefix, f"{prefix}.0.gate_proj") or self.experts or self.name

    def name_for_table(self, prefix: str) -> str:
        """That of an embedding table."""
        return self._named(prefix) or self.table or self.head or self.name

    def _named(self, *prefixes: str) -> str:
        """What `skip` or `layers` say of a layer, empty: nothing."""
        if any(_matches(prefix, pattern) for pattern in self.skip for prefix in prefixes):
            return UNQUANTIZED
        fits = (name for pattern, name in self.layers if any(_matches(p, pattern) for p in prefixes))
        return next(fits, "")

    def renamed(self, names: Mapping[str, str]) -> QuantConfig:
        """With other methods for some; those of `forms` too."""

        def new(name: str) -> str:
            return names.get(name, name)

        forms = {new(name): form for name, form in self.options["forms"].items()}
        return replace(
            self,
            name=new(self.name),
            options={**self.options, "forms": forms},
            head=new(self.head),
            layers=tuple((pattern, new(name)) for pattern, name in self.layers),
            experts=new(self.experts),
            table=new(self.table),
        )

    def names(self) -> list[str]:
        """Every method it mentions."""
        return [*self.dense_names(), *filter(None, [self.experts])]

    def dense_names(self) -> list[str]:
        """Those of layers that are no experts."""
        return [self.name, *filter(None, [self.head, self.table, *(name for _, name in self.layers)])]


def _matches(prefix: str, pattern: str) -> bool:
    if pattern.startswith(_EXPRESSION):
        return re.match(pattern.removeprefix(_EXPRESSION), prefix) is not None
    return fnmatch(prefix, pattern) or prefix.endswith(f".{pattern}") or prefix.startswith(f"{pattern}.")


def parse_quantization(
    checkpoint: Mapping[str, Any] | None, requested: str, known: Collection[str]
) -> QuantConfig:
    """The configuration from config.json's `quantization_config` and the user's text (a method's name
    or a JSON object with `quantization`). The checkpoint wins, with a warning when they differ."""
    asked = _from_text(requested)
    if checkpoint:
        found = _from_mapping(checkpoint, "config.json quantization_config", from_checkpoint=True)
        found = _runnable(found, asked.name, known)
        if requested and asked.name != found.name:
            _log.warning("quantization %r is ignored: the checkpoint is %r", requested, found.name)
        asked = found
    for name in asked.names():
        if name not in known:
            names = ", ".join(sorted(known))
            raise QuantError(f"quantization: want one of {names}; have {name!r} (is a plug-in missing?)")
    return asked


def _runnable(found: QuantConfig, asked: str, known: Collection[str]) -> QuantConfig:
    """The checkpoint's methods, or those that run the same codes: where the device has no others, with a
    warning, and where the user asks for them and the checkpoint does not say how activations go."""
    forms = found.options.get("forms")
    if not isinstance(forms, Mapping):
        return found
    lacking = {a8: a16 for a16, a8 in _SAME_CODES.items() if a8 not in known and a16 in known}
    said = found.options.get("quant_method") not in PUBLIC
    wanted = _SAME_CODES if not said and asked in _SAME_CODES.values() and asked in known else {}
    names = {**lacking, **wanted}
    renamed = [name for name in found.names() if name in names]
    if said and renamed:
        instead = ", ".join(f"{name} as {names[name]}" for name in dict.fromkeys(renamed))
        _log.warning("quantization: this device runs %s: the same weights, 16-bit activations", instead)
    return found.renamed(names) if renamed else found


def _from_text(text: str) -> QuantConfig:
    text = text.strip()
    if not text.startswith("{"):
        return QuantConfig(text or UNQUANTIZED, head=_HEADS.get(text, ""))
    try:
        value = json.loads(text)
    except ValueError as error:
        raise QuantError(f"quantization: want a name or a JSON object: {error}") from None
    return _from_mapping(value, "quantization", from_checkpoint=False)


def _from_mapping(value: Mapping[str, Any], where: str, from_checkpoint: bool) -> QuantConfig:
    name = next((value[key] for key in _NAME_KEYS if value.get(key)), None)
    if not isinstance(name, str):
        raise QuantError(f"{where}: want a method under {' or '.join(_NAME_KEYS)}; have {sorted(value)}")
    if name == "fp8" and value.get("weight_block_size"):
        name = "block_wise_fp8"
    if name in PUBLIC:
        name, value = _public(name, value, where)
    mixed = name == MIXED
    if mixed:
        name = _text(value, "dense_quant_type", where) or UNQUANTIZED
    return QuantConfig(
        name,
        dict(value),
        tuple(pattern for key in _SKIP_KEYS for pattern in value.get(key) or ()),
        from_checkpoint,
        _text(value, HEAD, where) or _HEADS.get(name, ""),
        _layers(value.get("layers") or {}, where),
        _text(value, EXPERTS, where) or _unsaid_experts(value, mixed),
        _text(value, "kv_cache_quant_type", where),
        _text(value, TABLE, where) or (UNQUANTIZED if value.get("is_quantized") else ""),
    )


def _public(name: str, value: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Our method and its options for another project's description."""
    ours = name == compressed_tensors.NAME
    try:
        return compressed_tensors.described(value) if ours else weight_only.described(name, value)
    except ValueError as error:
        fix = compressed_tensors.FIX if ours else weight_only.FIX
        raise QuantError(f"{where}: {name}: {error}; fix: {fix}") from None


def _unsaid_experts(value: Mapping[str, Any], mixed: bool) -> str:
    """Mixed configurations and null leave experts alone, as do checkpoints from before experts were
    converted; elsewhere they go with the dense layers (empty)."""
    return UNQUANTIZED if mixed or EXPERTS in value or value.get("is_quantized") else ""


def _text(value: Mapping[str, Any], key: str, where: str) -> str:
    found = value.get(key) or ""
    if not isinstance(found, str):
        raise QuantError(f"{where}: want the name of a method under {key}; have {found!r}")
    return found


def _layers(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value.values()):
        raise QuantError(f"{where}: want {{pattern: method}} under layers; have {value!r}")
    return tuple((str(pattern), name) for pattern, name in value.items())
