"""Device memory as Paddle tensors, and views of it as both sides know them.

A `Block` is one allocation: a flat uint8 Paddle tensor that owns the bytes. fd-core sees it as `Storage`
and `Tensor`; kernels see views that Paddle's own stride operators make of the block, which works on every
place (Paddle exports DLPack for processors and CUDA only). A view is made once and kept.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from fd_core.api.device import Device
from fd_core.api.dtype import DType
from fd_core.api.dtype import dtype as by_name
from fd_core.api.tensor import Storage, Tensor, TensorSpec

if TYPE_CHECKING:
    import numpy as np

ALIGN = 16  # bytes; a block is a multiple of it, so that it can be read as any element type
MAX_VIEWS = 512  # per block; long runs of odd sizes start over
#: Element types that Paddle computes with; other tensors (uint16 ...) can be kept and copied.
PADDLE_TYPES = frozenset(
    "float32 float64 float16 bfloat16 float8_e4m3fn int8 int16 int32 int64 uint8 bool".split()
)
#: A row of int8 codes in a cache is followed by its scale, float32.
SCALE_BYTES = 4
#: Types of equal width that any copy may use.
CARRIERS = {8: "uint8", 16: "int16", 32: "int32", 64: "int64"}


@cache
def paddle() -> Any:
    """Paddle, imported when the first device is opened."""
    from fd_xpu.framework import paddle as module

    return module


class Block:
    """One allocation and its views by (address, shape, strides, type).

    `base` begins at the start of its storage, which is where Paddle's offsets count from.
    """

    __slots__ = ("base", "ptr", "views")

    def __init__(self, base: Any) -> None:
        self.base = base  # [bytes] uint8
        self.ptr = int(base.data_ptr())
        self.views: dict[tuple[Any, ...], Any] = {}

    def view(self, tensor: Tensor, kind: str) -> Any:
        key = (tensor.ptr, tensor.shape, tensor.strides, kind)
        found = self.views.get(key)
        if found is None:
            if len(self.views) >= MAX_VIEWS:
                self.views.clear()
            found = self.views[key] = self._make(tensor, kind)
        return found

    def _make(self, tensor: Tensor, kind: str) -> Any:
        shape, strides, size = list(tensor.shape), list(tensor.strides), tensor.dtype.itemsize
        if tensor.numel == 0:
            return paddle().empty(shape, kind)
        skip = (tensor.ptr - self.ptr) % size
        if skip:
            raise ValueError(f"want an address that is a multiple of {size} bytes, have one {skip} beyond")
        return paddle().as_strided(self.base.view(kind), shape, strides, tensor.ptr - self.ptr)


def new_block(nbytes: int, place: Any) -> Block:
    size = max(ALIGN, -(-nbytes // ALIGN) * ALIGN)
    return Block(paddle().empty([size], "uint8", device=place))


def tensor_of(block: Block, spec: TensorSpec, device: Device, platform: Any) -> Tensor:
    storage = Storage(block.ptr, spec.nbytes, device, block, platform)
    return Tensor(block.ptr, spec.shape, spec.dtype, storage)


def carrier(tensor: Tensor) -> Any:
    """The Paddle view for copies: elements of equal width, whatever they mean."""
    return as_paddle(tensor, CARRIERS[tensor.dtype.bits])


def as_paddle(tensor: Tensor, kind: str | None = None) -> Any:
    """A Paddle tensor over the same memory. TypeError for a type that Paddle does not have."""
    kind = kind or paddle_type(tensor.dtype)
    owner = tensor.storage.owner
    if isinstance(owner, Block):
        return owner.view(tensor, kind)
    return _foreign(tensor, kind)


def paddle_type(dtype: DType) -> str:
    if dtype.name not in PADDLE_TYPES:
        raise TypeError(f"want an element type that Paddle has, have {dtype}")
    return dtype.name


def _foreign(tensor: Tensor, kind: str) -> Any:
    """Memory that others own, through DLPack, which Paddle reads on processors alone."""
    if not tensor.storage.on_host:
        fix = "allocate it with the platform, or wrap a Paddle tensor with fd_xpu.memory.from_paddle"
        raise TypeError(f"want memory of a Paddle tensor, have other memory on {tensor.device}; fix: {fix}")
    if tensor.numel == 0:
        return paddle().empty(list(tensor.shape), kind)
    carried = tensor.bitcast(by_name(CARRIERS[tensor.dtype.bits]))
    return paddle().utils.dlpack.from_dlpack(carried).view(kind)


def from_paddle(value: Any, device: Device, platform: Any) -> Tensor:
    """A Paddle tensor as fd-core's, without a copy: it stays the owner."""
    kind = by_name(str(value.dtype).rpartition(".")[2])
    shape, strides = tuple(map(int, value.shape)), tuple(map(int, value.strides))
    if 0 in shape:
        return tensor_of(new_block(0, value.place), TensorSpec(shape, kind), device, platform)
    span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    block = Block(from_start(value, span).view("uint8"))
    storage = Storage(block.ptr, block.base.shape[0], device, block, platform)
    return Tensor(value.data_ptr(), shape, kind, storage, strides)


def offset(value: Any) -> int:
    """Bytes between the start of a Paddle tensor's storage and its first element."""
    return int(value.data_ptr() - paddle().as_strided(value, [1], [1], 0).data_ptr())


def from_start(value: Any, span: int) -> Any:
    """A flat tensor from the start of the storage to `span` elements behind the first of `value`."""
    return paddle().as_strided(value, [offset(value) // value.element_size() + span], [1], 0)


def recast(rows: Any, kind: str) -> Any:
    """A contiguous matrix read as elements of another width. `Tensor.view` of Paddle 3.3 misplaces tensors
    that do not begin at the start of their storage, so these are viewed from there."""
    start, size = offset(rows), rows.element_size()
    if not start:
        return rows.view(kind)
    whole = from_start(rows, rows.shape[0] * rows.shape[1]).view(kind)
    columns = rows.shape[1] * size // whole.element_size()
    return paddle().as_strided(whole, [rows.shape[0], columns], [columns, 1], start)


def upload(array: np.ndarray[Any, Any], place: Any) -> Block:
    """A block with the bytes of a host array."""
    import numpy as np

    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    size = max(ALIGN, -(-flat.size // ALIGN) * ALIGN)
    padded = np.zeros(size, np.uint8)
    padded[: flat.size] = flat
    return Block(paddle().to_tensor(padded, place=place))


def download(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A host copy, complete on return."""
    import numpy as np

    kind = tensor.dtype.numpy()
    if tensor.numel == 0:
        return np.empty(tensor.shape, kind)
    return np.array(carrier(tensor).numpy()).view(kind).reshape(tensor.shape)


def copy(dst: Tensor, src: Tensor) -> None:
    """Between two tensors of equal shape and type; either may be plain host memory."""
    if dst.shape != src.shape or dst.dtype != src.dtype:
        raise ValueError(f"copy: want {dst.shape} {dst.dtype}, have {src.shape} {src.dtype}")
    if dst.numel == 0:
        return
    if isinstance(dst.storage.owner, Block):
        carrier(dst).copy_(_source(src), True)
    else:
        dst.numpy()[...] = download(src) if isinstance(src.storage.owner, Block) else src.numpy()


def _source(src: Tensor) -> Any:
    import numpy as np

    if isinstance(src.storage.owner, Block):
        return carrier(src)
    flat = np.ascontiguousarray(src.numpy()).view(CARRIERS[src.dtype.bits])
    return paddle().to_tensor(flat.reshape(src.shape), place="cpu")
