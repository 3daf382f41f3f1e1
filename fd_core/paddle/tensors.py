"""Between Paddle's tensors and ours, without copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle

from fd_core.api.dtype import DType, dtype
from fd_core.api.tensor import Tensor
from fd_core.host.session import Session
from fd_core.ops.call import on_device

Array = np.ndarray[Any, Any]


def view(tensor: paddle.Tensor, session: Session, label: str = "x") -> Tensor:
    """The same memory as ours; ValueError if it is not on the session's device."""
    return on_device(label, tensor.detach(), session, True)


def element_type(tensor: paddle.Tensor) -> DType:
    return dtype(str(tensor.dtype).rpartition(".")[2])


def name_of(kind: DType) -> str:
    """What Paddle calls an element type: the same names."""
    return kind.name


def host_array(tensor: paddle.Tensor, session: Session) -> Array:
    """A host array, bfloat16 and float8 included (Paddle's own `numpy()` gives their bits)."""
    ours = view(tensor, session, "parameter")
    return ours.numpy() if ours.storage.on_host else session.platform.to_host(ours)


def from_array(array: Array) -> paddle.Tensor:
    """A copy on Paddle's current place, whatever the element type."""
    kind = dtype(array.dtype.name)
    if kind.name in ("bfloat16", "float8_e4m3fn"):
        bits = paddle.to_tensor(array.view(np.int16 if kind.bits == 16 else np.int8))
        return bits.view(getattr(paddle, kind.name))
    return paddle.to_tensor(array)
