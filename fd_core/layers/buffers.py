"""Persistent device memory for activations: made once, sliced by the number of rows of a step."""

from __future__ import annotations

from collections.abc import Callable

from fd_core.api.dtype import DType
from fd_core.api.platform import Platform
from fd_core.api.tensor import Tensor, TensorSpec

#: Views kept per buffer. A step needs one size, so only long runs of odd prefill sizes evict.
MAX_VIEWS = 256

#: The view of a step of n tokens.
Cut = Callable[[int], Tensor]
Key = tuple[int | str, ...]


class Buffer:
    """A tensor with room for `limit` tokens and its views by number of tokens, each made once."""

    __slots__ = ("_cut", "_derived", "_views", "limit", "tensor")

    def __init__(self, tensor: Tensor, limit: int | None = None, cut: Cut | None = None) -> None:
        self.tensor = tensor
        self.limit = tensor.shape[0] if limit is None else limit
        self._cut = cut or (lambda n: tensor.slice(0, n))
        self._views: dict[int, Tensor] = {}
        self._derived: dict[Key, Buffer] = {}

    @classmethod
    def empty(cls, platform: Platform, shape: tuple[int, ...], dtype: DType) -> Buffer:
        """[limit, ...]"""
        return cls(platform.empty(TensorSpec(shape, dtype)))

    def rows(self, n: int) -> Tensor:
        """The view of `n` tokens: the first n rows, unless the buffer is derived from another."""
        view = self._views.get(n)
        return self._make(n) if view is None else view

    def _make(self, n: int) -> Tensor:
        if n > self.limit:
            raise ValueError(f"buffer: want at most {self.limit} rows, have {n}")
        if len(self._views) >= MAX_VIEWS:
            del self._views[next(iter(self._views))]
        view = self._views[n] = self._cut(n)
        return view

    # -- the same memory seen differently; one buffer per view, so that all layers share it ----------

    def flat(self) -> Buffer:
        """[n, everything else]"""
        return self._derive(("flat",), lambda n: self.tensor.slice(0, n).view(n, self._row_size()))

    def merged(self) -> Buffer:
        """The first two dimensions as one: [n * second, ...]"""
        second, *rest = self.tensor.shape[1:]
        return self._derive(("merged",), lambda n: self.tensor.slice(0, n).view(n * second, *rest))

    def columns(self) -> Buffer:
        """A matrix [limit, m] as [m, n], contiguous: the tokens come last."""
        count = self.tensor.shape[1]
        line = self.tensor.view(-1)
        return self._derive(("columns",), lambda n: line.slice(0, n * count).view(count, n))

    def heads(self, start: int, count: int, head_dim: int) -> Buffer:
        """Columns [start, start + count * head_dim) of a matrix as [n, count, head_dim], strided."""
        rows, columns = self.tensor.shape
        if start % head_dim or columns % head_dim:
            raise ValueError(f"heads: want multiples of {head_dim}, have {start} of {columns} columns")
        first = start // head_dim
        part = self.tensor.view(rows, -1, head_dim).slice(first, first + count, dim=1)
        return self._derive(("heads", start, count, head_dim), lambda n: part.slice(0, n))

    def _row_size(self) -> int:
        return self.tensor.numel // max(self.tensor.shape[0], 1)

    def _derive(self, key: Key, cut: Cut) -> Buffer:
        if key not in self._derived:
            self._derived[key] = Buffer(self.tensor, self.limit, cut)
        return self._derived[key]
