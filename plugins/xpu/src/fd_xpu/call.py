"""From fd-core's call to a function over Paddle tensors: check, view, compute, write.

An op's function takes the schema's inputs and attributes in order, tensors as Paddle tensors over the
caller's memory, and returns what is to be written into the in-place and output parameters, in order (None:
written already). Nothing is written before it returns, so a refusal leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fd_core.api.tensor import Tensor
from fd_xpu.framework import paddle
from fd_xpu.kernels import arguments
from fd_xpu.memory import as_paddle
from fd_xpu.signature import check

MAX_SIGNATURES = 4096  # of calls that were checked; then all are forgotten


class PaddleKernel:
    """One op over Paddle's operators. A signature (types, shapes, strides, devices) is checked once."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self.function = function
        self.arguments = arguments(self.name)
        self.__doc__ = function.__doc__
        self._takes = [a.role != "out" for a in self.arguments]
        self._writes = [i for i, a in enumerate(self.arguments) if a.is_written]
        self._checked: set[tuple[Any, ...]] = set()

    def __call__(self, *args: Any) -> None:
        self._check(args)
        views = [as_paddle(a) if isinstance(a, Tensor) else a for a in args]
        targets = [(args[i], views[i]) for i in self._writes if args[i] is not None]
        results = self.function(*(v for v, taken in zip(views, self._takes, strict=True) if taken))
        if results is not None:
            write(self.name, targets, results if isinstance(results, tuple | list) else (results,))

    def _check(self, args: tuple[Any, ...]) -> None:
        key = tuple(
            (a.dtype, a.shape, a.strides, a.device) if isinstance(a, Tensor) else (type(a), a) for a in args
        )
        if key in self._checked:
            return
        check(self.name, self.arguments, args)
        if len(self._checked) >= MAX_SIGNATURES:
            self._checked.clear()
        self._checked.add(key)


def write(op: str, targets: Sequence[tuple[Tensor, Any]], results: Sequence[Any]) -> None:
    """Each result into its tensor, rounded to its type once; all shapes are compared first."""
    pairs = [(v, r) for (t, v), r in zip(targets, results, strict=True) if r is not None and t.numel]
    for view, result in pairs:
        if list(view.shape) != list(result.shape):
            raise ValueError(f"{op}: want an output of {list(result.shape)}, have {list(view.shape)}")
    for view, result in pairs:
        view.copy_(rounded(result, view.dtype), False)


def rounded(result: Any, kind: Any) -> Any:
    """In another type, through float32 where it is float64. Paddle's CPU cast to float16 turns numbers far
    below its smallest (2^-24) into others, so they become zeros first."""
    if result.dtype == kind:
        return result
    narrow = result.astype("float32") if result.dtype == paddle.float64 else result
    if kind == paddle.float16 and narrow.dtype == paddle.float32 and narrow.place.is_cpu_place():
        narrow = paddle.where(narrow.abs() < 2.0**-25, narrow * 0.0, narrow)
    return narrow.astype(kind)
