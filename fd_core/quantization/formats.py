"""The formats in which checkpoints hold codes, by the names under `forms` of a quantization_config."""

from __future__ import annotations

from fd_core.quantization.codes import CodeFormat
from fd_core.quantization.packed_words import Awq, Gptq, GptqV2, IntQuantized, PackQuantized
from fd_core.quantization.panels import Int4Panels, Int4ZeroPanels, Int8Panels, Panels

#: Those that `fd quantize` writes too.
PANELS: tuple[type[Panels], ...] = (Int8Panels, Int4Panels, Int4ZeroPanels)
PUBLIC: tuple[type[CodeFormat], ...] = (PackQuantized, IntQuantized, Awq, Gptq, GptqV2)
FORMATS: dict[str, type[CodeFormat]] = {one.name: one for one in (*PANELS, *PUBLIC)}
