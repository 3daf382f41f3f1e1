"""What every layer of a model is built with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fd_core.api.attention import AttentionBackend
from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import DType
from fd_core.api.platform import Platform
from fd_core.api.quant import ExpertMethod, ExpertSpec, LinearSpec, QuantMethod
from fd_core.host.dispatch import Dispatch


class ChooseQuant(Protocol):
    """The quantisation method of each layer; UnsupportedOpError where it cannot run it."""

    def __call__(self, spec: LinearSpec, /) -> QuantMethod: ...

    def experts(self, spec: ExpertSpec, /) -> ExpertMethod: ...

    def table(self, spec: LinearSpec, /) -> QuantMethod | None: ...


@dataclass(frozen=True, slots=True)
class ModelContext:
    """The opened device and the sizes a model is planned for.

    `dtype`: the weights'. `max_num_tokens`: rows of a step (the size of every activation buffer).
    `max_num_seqs`: rows of logits. `quant` chooses the methods of layers.
    `attention_backend`: the user's choice by name, empty for the best one. `max_model_len`: rows of
    the rotary tables.
    """

    platform: Platform
    device: DeviceInfo
    ops: Dispatch
    dtype: DType
    cache_dtype: DType
    block_size: int
    max_num_tokens: int
    max_num_seqs: int
    max_model_len: int
    quant: ChooseQuant
    attention_backends: Sequence[type[AttentionBackend]] = field(default_factory=tuple)
    attention_backend: str = ""

    @property
    def activation_dtype(self) -> DType:
        """What the device prefers for activations, else the weights' type."""
        return self.device.activation_dtype or self.dtype
