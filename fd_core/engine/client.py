"""What a front end sees of an engine, wherever the engine runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from fd_core.engine.request import EngineOutput, EngineRequest, EngineStats, ModelInfo


class EngineDeadError(RuntimeError):
    """The engine process ended or stalled; the text says how. Raised to every waiting request."""


class EngineClient(ABC):
    """Asynchronous face of an engine. One event loop; request ids are unique per client."""

    info: ModelInfo

    @abstractmethod
    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Outputs of all `n` completions until each has a finish reason.

        A refusal at admission arrives as one output with `refused`. Closing the iterator early
        aborts the request. Raises EngineDeadError when the engine is gone.
        """

    @abstractmethod
    async def abort(self, request_id: str, index: int | None = None) -> None:
        """Stop a request, or one of its completions, at any moment; unknown ids are ignored."""

    @abstractmethod
    async def stats(self) -> EngineStats:
        """Fresh figures; raises EngineDeadError when the engine is gone."""

    @abstractmethod
    def healthy(self) -> str:
        """Empty when alive and progressing, else what is wrong."""

    @abstractmethod
    async def close(self) -> None:
        """Stop the engine and wait for it."""
