"""Decode steps as captured graphs: recorded once per padded batch size, replayed on new data.

Everything a step needs lies in the builder's persistent buffer, so a recorded step reads the next
step's data from the same addresses. Rows behind the batch are padding: no query, no cache write.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fd_core.api.platform import DeviceError, Graph, Platform
from fd_core.api.tensor import Tensor
from fd_core.engine.scheduler import Scheduled
from fd_core.engine.step_inputs import InputBuilder, StepInputs
from fd_core.host.dispatch import Dispatch, FrozenOp
from fd_core.layers.buffers import Buffer

log = logging.getLogger("fd.engine")

#: Ops with the numbers of their calls and of those that a fallback served.
Calls = list[tuple[FrozenOp, int, int]]

#: Runs the model on padded inputs; logits [rows, vocab] of every row.
Forward = Callable[[StepInputs], Tensor]


def capture_sizes(most: int, wanted: Sequence[int] = ()) -> list[int]:
    """`wanted` up to `most`, ascending; nothing wanted: 1, 2, 4, then 8..128 by 8, 144..256 by 16, 288.. by
    32, and `most` itself (modules.md §5)."""
    if wanted:
        return sorted({size for size in wanted if size <= most})
    sizes = [1, 2, 4, *range(8, 129, 8), *range(144, 257, 16), *range(288, 1025, 32)]
    return sorted({size for size in sizes if size < most} | {most})


@dataclass(slots=True)
class Recorded:
    """A step of one size. `calls`: what a replay adds to the counters of the ops it holds."""

    graph: Graph
    logits: Buffer
    calls: Calls

    def replay(self) -> None:
        self.graph.replay()
        for op, calls, fallbacks in self.calls:
            op.calls += calls
            op.fallbacks += fallbacks


class DecodeGraphs:
    """Graphs of pure decode steps, the head included. Off for good where the device records none."""

    def __init__(
        self,
        platform: Platform,
        ops: Dispatch,
        inputs: InputBuilder,
        forward: Forward,
        sizes: list[int],
    ) -> None:
        self.platform = platform
        self.ops = ops
        self.inputs = inputs
        self.forward = forward
        self.sizes = sizes
        self.enabled = bool(sizes)
        self.replays = 0
        self._recorded: dict[int, Recorded] = {}

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Record `sizes` ahead, so that no request waits for it; largest first, whose memory the others
        can share."""
        started = time.perf_counter()
        for size in sorted(sizes, reverse=True):
            self.inputs.transit.next_step()
            step = self.inputs.build([], pad_to=size)
            if not (self.enabled and self._record(size, step)):
                return
        log.info("captured %d decode steps in %.1f s", len(sizes), time.perf_counter() - started)

    def run(self, items: list[Scheduled]) -> Tensor | None:
        """Logits [rows, vocab] of a decode step; None where it must run eagerly."""
        fits = self.enabled and len(items) <= self.sizes[-1]
        if not fits or not all(item.decodes for item in items):
            return None
        size = self.sizes[bisect_left(self.sizes, len(items))]
        step = self.inputs.build(items, pad_to=size)
        if size not in self._recorded and not self._record(size, step):
            return None
        recorded = self._recorded[size]
        recorded.replay()
        self.replays += 1
        return recorded.logits.rows(len(items))

    def _record(self, size: int, step: StepInputs) -> bool:
        """Run the step once, because first calls may allocate, then record it."""
        with self._counting() as first:
            logits = self.forward(step)
        unfit = sorted(op.name for op, _, fallbacks in first if fallbacks or op.kernel.allocates)
        if unfit:
            log.warning(
                "decode steps run eagerly: these ops allocate or are not the device's own: %s",
                ", ".join(unfit),
            )
        graph, calls = (None, []) if unfit else self._capture(size, step)
        if graph is None:
            self.enabled = False
            return False
        self._recorded[size] = Recorded(graph, Buffer(logits), calls)
        return True

    def _capture(self, size: int, step: StepInputs) -> tuple[Graph | None, Calls]:
        """Recording runs nothing, so its calls do not count; each replay's will."""
        try:
            with self._counting() as calls:
                graph = self.platform.capture(lambda: _run(self.forward, step))
        except MemoryError as error:
            raise MemoryError(_text(size, error, "lower max_num_seqs or memory_utilization")) from error
        except DeviceError as error:
            raise DeviceError(_text(size, error, "set enable_graphs=False (--no-graphs)")) from error
        for op, count, fallbacks in calls:
            op.calls -= count
            op.fallbacks -= fallbacks
        return graph, calls

    @contextmanager
    def _counting(self) -> Iterator[Calls]:
        """The ops called inside, how often, and how often by a fallback; filled at the end."""
        before = [(op, op.calls, op.fallbacks) for op in self.ops.table.values()]
        calls: Calls = []
        yield calls
        calls += [(op, op.calls - was, op.fallbacks - fell) for op, was, fell in before if op.calls > was]


def _run(forward: Forward, step: StepInputs) -> None:
    forward(step)


def _text(size: int, error: Exception, fix: str) -> str:
    return f"recording the decode step of {size} rows failed: {error}; fix: {fix}"
