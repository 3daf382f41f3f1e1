"""What Paddle layers are built with: the engine's context, and a place in a tensor-parallel group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fd_core.api.dtype import DType, dtype
from fd_core.host.session import Session, current_session
from fd_core.layers.context import ModelContext
from fd_core.layers.scratch import Scratch
from fd_core.quantization.config import parse_quantization
from fd_core.quantization.registry import QuantChooser


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """This process's part of layers that are split over `size` devices; `group` is Paddle's."""

    rank: int = 0
    size: int = 1
    group: Any = None

    def part(self, total: int, what: str) -> int:
        """Elements of this rank; ValueError if `total` cannot be divided evenly."""
        if total % self.size:
            raise ValueError(f"{what}: want a multiple of {self.size} tensor-parallel ranks, have {total}")
        return total // self.size


@dataclass(frozen=True, slots=True)
class LayerContext:
    """`model` is the engine's context, `scratch` the activation memory that all layers share."""

    session: Session
    model: ModelContext
    scratch: Scratch
    tp: TensorParallel


def make_context(
    kind: str | DType = "float32",
    *,
    quantization: str = "",
    cache: str | None = None,
    block_size: int = 16,
    max_num_tokens: int = 2048,
    max_model_len: int = 4096,
    checkpoint_quantization: Mapping[str, Any] | None = None,
    attention_backend: str = "",
    tp: TensorParallel | None = None,
    session: Session | None = None,
) -> LayerContext:
    """The context of layers on the session's device.

    `kind`: the weights' element type; `quantization`: a method's name, as `fd serve --quantization`.
    """
    opened = session or current_session()
    wanted = parse_quantization(checkpoint_quantization, quantization, opened.quant_methods)
    parts = (opened.quant_methods, opened.device, opened.platform, opened.ops)
    model = ModelContext(
        platform=opened.platform,
        device=opened.device,
        ops=opened.ops,
        dtype=dtype(kind),
        cache_dtype=dtype(cache or kind),
        block_size=block_size,
        max_num_tokens=max_num_tokens,
        max_num_seqs=max_num_tokens,
        max_model_len=max_model_len,
        quant=QuantChooser(wanted, *parts),
        attention_backends=opened.attention_backends,
        attention_backend=attention_backend,
    )
    return LayerContext(opened, model, Scratch(opened.platform, max_num_tokens), tp or TensorParallel())
