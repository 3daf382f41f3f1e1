"""Which way round linear weights are stored: declared, never guessed from shapes."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from fd_core.loader.errors import CheckpointError


class WeightLayout(str, Enum):
    """Order of the dimensions of a linear layer's matrix in the checkpoint."""

    AUTO = "auto"
    OUT_IN = "out_in"
    IN_OUT = "in_out"


#: What the `format` entry of a file's metadata says. Others (`np`, none) do not decide.
_BY_FORMAT = {"pt": WeightLayout.OUT_IN, "pd": WeightLayout.IN_OUT}

_HOW = 'say weight_layout="out_in" or "in_out" (option of the loader, or a key of config.json)'


def decide_layout(
    flag: WeightLayout, config_key: str | None, formats: Iterable[str | None]
) -> WeightLayout:
    """One layout from the user's flag, config.json's `weight_layout` and the files' metadata.

    Raises CheckpointError when they contradict each other or when none of them says anything.
    """
    said: dict[WeightLayout, str] = {}
    if config_key is not None:
        said[_parse(config_key)] = f"config.json says {config_key!r}"
    for name in formats:
        if name in _BY_FORMAT:
            said.setdefault(_BY_FORMAT[name], f"file metadata says format {name!r}")
    if flag is not WeightLayout.AUTO:
        said.setdefault(flag, f"the option says {flag.value!r}")
    said.pop(WeightLayout.AUTO, None)
    if len(said) == 1:
        return next(iter(said))
    if said:
        raise CheckpointError(f"weight layout: contradiction: {'; '.join(said.values())}; {_HOW}")
    raise CheckpointError(f"weight layout: neither config.json nor the files' metadata declare it; {_HOW}")


def _parse(text: str) -> WeightLayout:
    try:
        return WeightLayout(text)
    except ValueError:
        want = ", ".join(layout.value for layout in WeightLayout)
        raise CheckpointError(f"config.json weight_layout: want one of {want}, have {text!r}") from None
