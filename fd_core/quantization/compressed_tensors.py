"""`quantization_config` of checkpoints that llm-compressor writes (quant_method "compressed-tensors").

One of its schemes is read: float8 weights with a scale per output, activations quantised per token as
they come ("FP8-dynamic"). Others are refused with what differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: What config.json calls it, and the method that runs it.
NAME, METHOD = "compressed-tensors", "wfp8afp8"
_FLOAT8 = {"type": "float", "num_bits": 8}
_WEIGHTS = {**_FLOAT8, "strategy": "channel", "dynamic": False, "symmetric": True}
_ACTIVATIONS = {**_FLOAT8, "strategy": "token", "dynamic": True, "symmetric": True}


def difference(config: Mapping[str, Any]) -> str:
    """The first thing that is not of the scheme that is read, as "want ..., have ..."; empty: none."""
    return next(_differences(config), "")


def _differences(config: Mapping[str, Any]) -> Iterator[str]:
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        yield f"want one group under config_groups, have {groups!r}"
        return
    ((name, group),) = groups.items()
    if not isinstance(group, Mapping) or group.get("targets") != ["Linear"]:
        yield f'{name}: want a group with targets ["Linear"], have {group!r}'
        return
    for side, wanted in (("weights", _WEIGHTS), ("input_activations", _ACTIVATIONS)):
        yield from _of_side(f"{name}.{side}", group.get(side), wanted)
    for place, holder in ((f"{name}.output_activations", group), ("kv_cache_scheme", config)):
        if holder.get(place.rpartition(".")[2]) is not None:
            yield f"{place}: want none, have {holder[place.rpartition('.')[2]]!r}"


def _of_side(where: str, have: Any, wanted: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(have, Mapping):
        yield f"{where}: want {dict(wanted)}, have {have!r}"
        return
    for key, want in wanted.items():
        found = have.get(key, want)
        if found != want:
            yield f"{where}.{key}: want {want!r}, have {found!r}"
