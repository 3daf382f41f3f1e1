"""Collectives between the ranks of a group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from fd_core.api.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """`rank` of `size` processes that meet at `address` (host:port or a socket path)."""

    rank: int
    size: int
    address: str


class Communicator(ABC):
    """All calls are collective, in place, and ordered on the platform's stream."""

    @abstractmethod
    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over ranks, left in `tensor` on each."""

    @abstractmethod
    def all_gather(self, tensor: Tensor, out: Tensor) -> None:
        """`out` [size, *tensor.shape] holds each rank's tensor in rank order."""

    @abstractmethod
    def broadcast(self, tensor: Tensor, root: int) -> None:
        """`tensor` of `root` on every rank."""
