"""A bound on the work that the server holds; beyond it clients are told to come back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fd_core.serving.errors import RequestError


class Admission:
    """Counts prompts in flight. `capacity` = sequences that run at once + the queue behind them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.inflight = 0

    @contextmanager
    def enter(self, weight: int) -> Iterator[None]:
        """Hold `weight` places. A request larger than the whole bound may run when nothing else does."""
        if self.inflight and self.inflight + weight > self.capacity:
            raise RequestError(
                f"{self.inflight} completions are under way, at most {self.capacity} fit; try again later",
                code="rate_limit_exceeded",
                status=429,
                headers={"Retry-After": "1"},
            )
        self.inflight += weight
        try:
            yield
        finally:
            self.inflight -= weight
