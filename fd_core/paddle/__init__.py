"""fd-core's layers as Paddle layers, on Paddle's tensors, over the same kernels, quantisation methods and
attention backends as the engine.

Importing this package imports Paddle; nothing else in fd-core does. Layers have no backward pass.
"""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("paddle") is None:
    raise ImportError(
        "fd_core.paddle: want Paddle, have none; fix: pip install paddlepaddle (docs/paddle.md)"
    )

from fd_core.paddle.attention import Attention, ForwardMeta, RotaryEmbedding
from fd_core.paddle.checkpoint import convert, load, save
from fd_core.paddle.context import TensorParallel, make_context
from fd_core.paddle.linear import (
    ColumnParallelLinear,
    Linear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from fd_core.paddle.moe import FusedMoE
from fd_core.paddle.norm import Embedding, RMSNorm

__all__ = [
    "Attention",
    "ColumnParallelLinear",
    "Embedding",
    "ForwardMeta",
    "FusedMoE",
    "Linear",
    "MergedColumnParallelLinear",
    "QKVParallelLinear",
    "RMSNorm",
    "ReplicatedLinear",
    "RotaryEmbedding",
    "RowParallelLinear",
    "TensorParallel",
    "convert",
    "load",
    "make_context",
    "save",
]
