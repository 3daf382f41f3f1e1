"""The state of one running server that its routes share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from fd_core.engine.client import EngineClient
from fd_core.observe.logs import logger
from fd_core.observe.metrics import Metrics
from fd_core.serving.admission import Admission
from fd_core.serving.config import ServeConfig
from fd_core.serving.errors import RequestError, unavailable
from fd_core.serving.inputs.text_model import TextModel
from fd_core.serving.reasoning import ReasoningParser
from fd_core.serving.tools import ToolParser

if TYPE_CHECKING:
    from fd_core.serving.generation import Generation

log = logger("serving")


class Phase(str, Enum):
    """`LEAVING`: not ready for balancers, but still answering; `DRAINING`: refuses new work."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    DRAINING = "draining"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded model: engine, text side, parsers."""

    engine: EngineClient
    text: TextModel
    reasoning: ReasoningParser | None = None
    tools: ToolParser | None = None


@dataclass(slots=True)
class ServerState:
    config: ServeConfig
    metrics: Metrics
    admission: Admission
    phase: Phase = Phase.STARTING
    detail: str = "the model is loading"
    progress: dict[str, Any] = field(default_factory=dict)
    served: Served | None = None
    started: int = field(default_factory=lambda: int(time.time()))
    generations: set[Generation] = field(default_factory=set)
    failure: RequestError | None = None

    def ready(self) -> Served:
        """The model, or the refusal that fits the phase."""
        if self.served is not None and self.phase in (Phase.READY, Phase.LEAVING):
            return self.served
        code = {
            Phase.STARTING: "model_loading",
            Phase.DRAINING: "server_draining",
            Phase.DEAD: "engine_dead",
        }
        retry = 5 if self.phase is Phase.STARTING else 1
        raise unavailable(f"the server is {self.phase.value}: {self.detail}", code[self.phase], retry)

    def set_phase(self, phase: Phase, detail: str = "") -> None:
        """Forward only: a server that is draining does not become ready again."""
        order = list(Phase)
        if order.index(phase) <= order.index(self.phase):
            return
        self.phase, self.detail = phase, detail
        self.metrics.engine.up = phase in (Phase.READY, Phase.LEAVING, Phase.DRAINING)
        log.info(
            "server is %s", phase.value, extra={"event": "phase", "phase": phase.value, "detail": detail}
        )

    def fail_all(self, error: RequestError, reason: str) -> None:
        """End every request in flight with `error`, and those that are about to start."""
        self.failure = error
        for generation in list(self.generations):
            generation.fail(error, reason)

    def check_model(self, name: str | None) -> str:
        """The name to answer with; a wrong one is a 404."""
        names = self.config.model_names
        if name is None or name in names:
            return name or names[0]
        shown = name if len(name) <= 100 else name[:97] + "..."
        raise RequestError(
            f"model: want one of {', '.join(names)}, found {shown!r}",
            param="model",
            code="model_not_found",
            status=404,
        )
