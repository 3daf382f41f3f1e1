"""The scheduler one step ahead of its device: blocks that are freed and handed out again meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zlib import crc32

from hypothesis import given, settings
from hypothesis import strategies as st

from fd_core.engine.kv_manager import KVManager
from fd_core.engine.request import FinishReason
from fd_core.engine.scheduler import Scheduled, Scheduler, StepPlan
from fd_core.engine.sequence import Sequence, Status
from tests.worker.test_scheduler import BLOCK, FakeDevice, expected, next_token, sequences

Blocks = list[list[int]]


def ends(tokens: list[int]) -> bool:
    """Whether a completion ends here, which nobody can know before the token is read."""
    return crc32(repr(tokens).encode()) % 9 == 0


class LateDevice(FakeDevice):
    """Runs a step when the next one has been planned. What a step reads must be right at that moment."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        self.flight: tuple[StepPlan, Blocks] | None = None
        self.rows = 0

    def run(self, plan: StepPlan) -> None:
        blocks = [list(item.seq.blocks) for item in plan.items]
        self.scheduler.launched(plan)
        self.settle()
        self.flight = (plan, blocks)

    def settle(self) -> None:
        if self.flight is None:
            return
        plan, blocks = self.flight
        self.flight = None
        self._move(plan)
        for item, mine in zip(plan.items, blocks, strict=True):
            self._work(item, mine)
        self.scheduler.settled(plan)
        for item in plan.items:
            if item.completes and item.seq.status is not Status.FINISHED:
                self._take(item.seq)

    def _work(self, item: Scheduled, blocks: list[int]) -> None:
        tokens = item.seq.tokens
        for position in range(item.start, item.end):
            known = tuple(tokens[: position + 1]) if position < len(tokens) else ("nobody's",)
            self.cells[blocks[position // BLOCK], position % BLOCK] = known
        if item.seq.status is Status.FINISHED:
            return
        self.rows += 1
        for position in range(item.end):
            cell = (blocks[position // BLOCK], position % BLOCK)
            assert self.cells[cell] == tuple(tokens[: position + 1])

    def _take(self, seq: Sequence) -> None:
        seq.append(next_token(seq))
        if seq.finish is None and ends(seq.tokens):
            seq.finish = FinishReason.STOP
        if seq.finish is not None:
            self.scheduler.remove(seq)


def finish(scheduler: Scheduler, device: LateDevice, between: Callable[[], None]) -> None:
    for _ in range(5000):
        between()
        if not (scheduler.running or scheduler.waiting):
            device.settle()
            return
        plan = scheduler.schedule()
        assert plan or device.flight, "work is waiting and nothing was scheduled"
        assert plan.num_tokens <= scheduler.token_budget
        device.run(plan)
    raise AssertionError("the scheduler does not come to an end")


REQUEST = st.tuples(st.integers(1, 30), st.integers(1, 16), st.integers(1, 3), st.integers(0, 2))


@settings(max_examples=250, deadline=None)
@given(
    requests=st.lists(REQUEST, min_size=1, max_size=10),
    blocks=st.integers(12, 30),
    host_blocks=st.sampled_from([0, 6, 40]),
    budget=st.integers(4, 40),
    prefix=st.booleans(),
    vocabulary=st.sampled_from([1, 3]),
    data=st.data(),
)
def test_every_step_reads_what_it_should(
    requests: Any, blocks: int, host_blocks: int, budget: int, prefix: bool, vocabulary: int, data: Any
) -> None:
    kv = KVManager(blocks, BLOCK, host_blocks=host_blocks, prefix=prefix)
    scheduler = Scheduler(kv, max_num_seqs=4, token_budget=budget)
    groups = []
    for i, (length, max_tokens, n, priority) in enumerate(requests):
        prompt = [(i * i + j * j) % vocabulary for j in range(length)]
        groups.append(sequences(f"r{i}", prompt, max_tokens, n, priority))
        scheduler.add(groups[-1])
    everyone = [seq for group in groups for seq in group]
    aborted = set()

    def abort_somebody() -> None:
        if data.draw(st.integers(0, 9)) == 0:
            victim = everyone[data.draw(st.integers(0, len(everyone) - 1))]
            if victim.status is not Status.FINISHED:
                scheduler.remove(victim)
                aborted.add(id(victim))

    finish(scheduler, LateDevice(scheduler), abort_somebody)
    for seq in everyone:
        prompt = seq.request.prompt_token_ids
        assert seq.tokens == expected(prompt, seq.index, seq.num_generated)
        early = [i for i in range(seq.num_prompt + 1, len(seq.tokens)) if ends(seq.tokens[:i])]
        assert not early
        done = len(seq.tokens) == seq.limit or ends(seq.tokens)
        assert done or id(seq) in aborted
    assert kv.pool.available == blocks
    assert kv.host.available == host_blocks
