"""Decode steps as captured graphs: recorded once per padded batch size, replayed on new data.

Everything a step needs lies in the builder's persistent buffers, so a recorded step reads the next
step's data from the same addresses. Rows behind the batch are padding: no query, no cache write.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable

from fd_core.api.platform import Graph, Platform
from fd_core.api.tensor import Tensor
from fd_core.engine.scheduler import Scheduled
from fd_core.engine.step_inputs import InputBuilder, StepInputs

log = logging.getLogger("fd.engine")

Forward = Callable[[StepInputs], Tensor]


def capture_sizes(most: int) -> list[int]:
    """1, 2, 4, then 8..128 by 8, 144..256 by 16, 288.. by 32, and `most` itself (modules.md §5)."""
    sizes = [1, 2, 4, *range(8, 129, 8), *range(144, 257, 16), *range(288, 1025, 32)]
    return sorted({size for size in sizes if size < most} | {most})


class DecodeGraphs:
    """Graphs of pure decode steps, recorded on first use. Off for good where the device records none."""

    def __init__(self, platform: Platform, inputs: InputBuilder, forward: Forward, most: int) -> None:
        self.platform = platform
        self.inputs = inputs
        self.forward = forward
        self.sizes = capture_sizes(most)
        self.enabled = True
        self.replays = 0
        self._recorded: dict[int, tuple[Graph, StepInputs, Tensor]] = {}

    def run(self, items: list[Scheduled]) -> tuple[StepInputs, Tensor] | None:
        """The step's inputs and hidden states [rows, hidden]; None where it must run eagerly."""
        if not self.enabled or not all(item.seq.in_decode for item in items):
            return None
        size = self.sizes[bisect_left(self.sizes, len(items))]
        step = self.inputs.build(items, pad_to=size)
        if size not in self._recorded and not self._record(size, step):
            return None
        graph, _, hidden = self._recorded[size]
        graph.replay()
        self.replays += 1
        return step, hidden.slice(0, len(items))

    def _record(self, size: int, step: StepInputs) -> bool:
        made: list[Tensor] = []
        graph = self.platform.capture(lambda: made.append(self.forward(step)))
        if graph is None:
            self.enabled = False
            return False
        log.info("captured the decode step for %d rows", size)
        self._recorded[size] = (graph, step, made[0] if made else self.forward(step))
        return True
