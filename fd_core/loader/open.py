"""Choose a weight source by name."""

from __future__ import annotations

from pathlib import Path

from fd_core.loader.dummy import DummySource
from fd_core.loader.folder import FolderSource
from fd_core.loader.layout import WeightLayout
from fd_core.loader.source import WeightSource

LOAD_FORMATS = ("auto", "safetensors", "dummy")


def open_source(
    folder: Path | str,
    load_format: str = "auto",
    weight_layout: WeightLayout | str = WeightLayout.AUTO,
    config_layout: str | None = None,
    seed: int = 0,
) -> WeightSource:
    """The source of a model folder's weights; `dummy` needs no files beside config.json.

    `weight_layout` is the user's word, `config_layout` that of config.json (`ModelConfig.weight_layout`).
    """
    if load_format not in LOAD_FORMATS:
        raise ValueError(f"load_format: want one of {', '.join(LOAD_FORMATS)}; have {load_format!r}")
    if load_format == "dummy":
        return DummySource(seed)
    return FolderSource(Path(folder), WeightLayout(weight_layout), config_layout)
