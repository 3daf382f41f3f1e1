"""Persistent device memory for activations: made once, sliced by the number of rows of a step."""

from __future__ import annotations

from collections.abc import Callable

from fd_core.api.dtype import DType
from fd_core.api.platform import Platform
from fd_core.api.tensor import Tensor, TensorSpec

#: Views kept per buffer. A step needs one size, so only long runs of odd prefill sizes evict.
MAX_VIEWS = 256


class Buffer:
    """A tensor [max rows, ...] and its leading slices, each made once and kept while in use."""

    __slots__ = ("_derived", "_views", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._views: dict[int, Tensor] = {}
        self._derived: dict[tuple[int | str, ...], Buffer] = {}

    @classmethod
    def empty(cls, platform: Platform, shape: tuple[int, ...], dtype: DType) -> Buffer:
        return cls(platform.empty(TensorSpec(shape, dtype)))

    def rows(self, n: int) -> Tensor:
        """The first `n` rows."""
        view = self._views.get(n)
        return self._make(n) if view is None else view

    def _make(self, n: int) -> Tensor:
        if n > self.tensor.shape[0]:
            raise ValueError(f"buffer: want at most {self.tensor.shape[0]} rows, have {n}")
        if len(self._views) >= MAX_VIEWS:
            del self._views[next(iter(self._views))]
        view = self._views[n] = self.tensor.slice(0, n)
        return view

    def flat(self) -> Buffer:
        """The same memory as [rows, everything else]."""
        return self._derive(("flat",), lambda: self.tensor.view(self.tensor.shape[0], -1))

    def heads(self, start: int, count: int, head_dim: int) -> Buffer:
        """Columns [start, start + count * head_dim) of a matrix as [rows, count, head_dim], strided."""
        rows, columns = self.tensor.shape
        if start % head_dim or columns % head_dim:
            raise ValueError(
                f"heads: want multiples of {head_dim}, have start {start} of {columns} columns"
            )
        first = start // head_dim

        def cut() -> Tensor:
            return self.tensor.view(rows, -1, head_dim).slice(first, first + count, dim=1)

        return self._derive((start, count, head_dim), cut)

    def _derive(self, key: tuple[int | str, ...], make: Callable[[], Tensor]) -> Buffer:
        """One derived buffer per key, so that all layers share its views."""
        if key not in self._derived:
            self._derived[key] = Buffer(make())
        return self._derived[key]
