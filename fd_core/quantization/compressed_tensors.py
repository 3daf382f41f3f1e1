"""`quantization_config` of checkpoints that llm-compressor writes (quant_method "compressed-tensors").

Four of its schemes are read: float8 weights with a scale per output, activations quantised per token as
they come ("FP8-dynamic"); int8 weights likewise ("W8A8"); int4 weights with a scale, and perhaps a zero
point, per group of neighbouring inputs or per output ("W4A16"); int8 weights per output ("W8A16"). Others
are refused with what differs from the one that is nearest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: What config.json calls it.
NAME = "compressed-tensors"
FIX = (
    "take a checkpoint of int4 or int8 weights alone, or one with dynamic activations per token (float8 or "
    "int8), or a plain one"
)


@dataclass(frozen=True, slots=True)
class Scheme:
    """`method` runs what is described so; a tuple lists what may be. `form`: of CodeFormats, empty: the
    method reads the tensors itself."""

    method: str
    form: str
    weights: Mapping[str, Any]
    activations: Mapping[str, Any] | None


def _per_token(kind: str) -> dict[str, Any]:
    return {"type": kind, "num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}


def _per_output(kind: str) -> dict[str, Any]:
    return {"type": kind, "num_bits": 8, "strategy": "channel", "dynamic": False, "symmetric": True}


_GROUPS = {
    "type": "int",
    "num_bits": 4,
    "strategy": ("group", "channel"),
    "dynamic": False,
    "symmetric": (True, False),
    "actorder": (None, "static", "weight"),
}
FLOAT8 = Scheme("wfp8afp8", "", _per_output("float"), _per_token("float"))
W8A8 = Scheme("w8a8", "int-quantized", _per_output("int"), _per_token("int"))
W8A16 = Scheme("wint8", "pack-quantized", _per_output("int"), None)
W4A16 = Scheme("wint4", "pack-quantized", _GROUPS, None)


def described(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The method and its options; ValueError says the first thing that is of no scheme that is read, as
    "want ..., have ..."."""
    name, group = _group(config)
    scheme = _nearest(group)
    for difference in _differences(name, group, config, scheme):
        raise ValueError(difference)
    found = {**config, "is_quantized": True}
    if scheme.form:
        found.update(dict.fromkeys(("lm_head", "moe_quant_type"), scheme.method))
        found["forms"] = {scheme.method: scheme.form}
    if scheme is W4A16:
        weights = group["weights"]
        whole = weights.get("strategy") == "channel"
        found["group_size"] = -1 if whole else weights.get("group_size")
        found["zero_point"] = not weights.get("symmetric", True)
    return scheme.method, found


def _group(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise ValueError(f"want one group under config_groups, have {groups!r}")
    ((name, group),) = groups.items()
    if not isinstance(group, Mapping) or group.get("targets") != ["Linear"]:
        raise ValueError(f'{name}: want a group with targets ["Linear"], have {group!r}')
    return str(name), group


def _nearest(group: Mapping[str, Any]) -> Scheme:
    weights = group.get("weights")
    if not isinstance(weights, Mapping) or weights.get("type") != "int":
        return FLOAT8
    if group.get("input_activations") is not None:
        return W8A8
    return W8A16 if weights.get("num_bits") == 8 else W4A16


def _differences(
    name: str, group: Mapping[str, Any], config: Mapping[str, Any], scheme: Scheme
) -> Iterator[str]:
    yield from _of_side(f"{name}.weights", group.get("weights"), scheme.weights)
    if scheme.activations is not None:
        yield from _of_side(f"{name}.input_activations", group.get("input_activations"), scheme.activations)
    form = group.get("format") or config.get("format")
    if scheme.form and form != scheme.form:
        yield f"format: want {scheme.form!r}, have {form!r}"
    for place, holder in ((f"{name}.output_activations", group), ("kv_cache_scheme", config)):
        if holder.get(place.rpartition(".")[2]) is not None:
            yield f"{place}: want none, have {holder[place.rpartition('.')[2]]!r}"
    # Rotations of activations at run time, and weights that are left out of the file.
    sparse = config.get("sparsity_config") or {}
    if config.get("transform_config"):
        yield f"transform_config: want none, have {config['transform_config']!r}"
    if sparse.get("format", "dense") != "dense":
        yield f"sparsity_config.format: want 'dense', have {sparse['format']!r}"


def _of_side(where: str, have: Any, wanted: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(have, Mapping):
        yield f"{where}: want {dict(wanted)}, have {have!r}"
        return
    for key, want in wanted.items():
        allowed = want if isinstance(want, tuple) else (want,)
        found = have.get(key, allowed[0])
        if found not in allowed:
            yield f"{where}.{key}: want {' | '.join(map(repr, allowed))}, have {found!r}"
