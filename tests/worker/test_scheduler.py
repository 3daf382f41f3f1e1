"""The scheduler without a model: a token is a hash of what came before, so nothing can be mixed up."""

from __future__ import annotations

import random
from zlib import crc32

from hypothesis import given, settings
from hypothesis import strategies as st

from fd_core.engine.kv_manager import KVManager
from fd_core.engine.request import EngineRequest, FinishReason, SamplingParams
from fd_core.engine.scheduler import Scheduler, StepPlan
from fd_core.engine.sequence import Sequence, Status

BLOCK = 4


def sequences(
    request_id: str, prompt: list[int], max_tokens: int, n: int = 1, priority: int = 0
) -> list[Sequence]:
    params = SamplingParams(max_tokens=max_tokens, n=n, ignore_eos=True)
    request = EngineRequest(
        request_id=request_id, prompt_token_ids=prompt, params=params, priority=priority, arrival_time=1.0
    )
    return [Sequence(request, i, len(prompt) + max_tokens, 0, frozenset()) for i in range(n)]


class FakeDevice:
    """Checks what a real one relies on: every token's KV is written once, in order, in owned blocks."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.cells: dict[tuple[int, int], tuple[int, ...]] = {}  # (block, offset) -> prefix written there
        self.host: dict[tuple[int, int], tuple[int, ...]] = {}

    def run(self, plan: StepPlan) -> None:
        self._move(plan)
        for item in plan.items:
            self._write(item.seq, item.count)
        done = [item.seq for item in plan.items if item.completes]
        self.scheduler.advance(plan)
        for seq in done:
            self._check(seq)
            seq.append(next_token(seq))
            if seq.finish is not None:
                self.scheduler.remove(seq)

    def _move(self, plan: StepPlan) -> None:
        for src, dst, pairs in (
            (self.cells, self.host, plan.moves.swap_out),
            (self.host, self.cells, plan.moves.swap_in),
        ):
            staged = {(b, o): src.get((a, o), ()) for a, b in pairs for o in range(BLOCK)}
            dst.update(staged)

    def _write(self, seq: Sequence, count: int) -> None:
        assert 0 < count <= seq.num_pending
        for position in range(seq.num_computed, seq.num_computed + count):
            cell = (seq.blocks[position // BLOCK], position % BLOCK)
            self.cells[cell] = tuple(seq.tokens[: position + 1])

    def _check(self, seq: Sequence) -> None:
        for position in range(len(seq.tokens)):
            cell = (seq.blocks[position // BLOCK], position % BLOCK)
            assert self.cells[cell] == tuple(seq.tokens[: position + 1])


def next_token(seq: Sequence) -> int:
    return crc32(repr((seq.tokens, seq.index if seq.num_generated == 0 else 0)).encode()) % 50


def expected(prompt: list[int], index: int, count: int) -> list[int]:
    tokens = list(prompt)
    for i in range(count):
        tokens.append(crc32(repr((tokens, index if i == 0 else 0)).encode()) % 50)
    return tokens


def drain(scheduler: Scheduler, device: FakeDevice, limit: int = 5000) -> int:
    for step in range(limit):
        if not (scheduler.running or scheduler.waiting):
            return step
        plan = scheduler.schedule()
        assert plan.items or plan.preempted, "work is waiting and nothing was scheduled"
        assert plan.num_tokens <= scheduler.token_budget
        device.run(plan)
    raise AssertionError("the scheduler does not come to an end")


REQUEST = st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(1, 3), st.integers(0, 2))


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(REQUEST, min_size=1, max_size=10),
    blocks=st.integers(11, 30),
    host_blocks=st.sampled_from([0, 6, 40]),
    budget=st.integers(4, 40),
    prefix=st.booleans(),
    vocabulary=st.sampled_from([1, 3]),
)
def test_every_request_gets_exactly_its_tokens(
    requests, blocks, host_blocks, budget, prefix, vocabulary
) -> None:
    kv = KVManager(blocks, BLOCK, host_blocks=host_blocks, prefix=prefix)
    scheduler = Scheduler(kv, max_num_seqs=4, token_budget=budget)
    rng = random.Random(len(requests))
    groups = []
    for i, (length, max_tokens, n, priority) in enumerate(requests):
        prompt = [rng.randrange(vocabulary) for _ in range(length)]
        groups.append(sequences(f"r{i}", prompt, max_tokens, n, priority))
        scheduler.add(groups[-1])
    drain(scheduler, FakeDevice(scheduler))
    for group in groups:
        for seq in group:
            assert seq.tokens == expected(
                seq.request.prompt_token_ids, seq.index, seq.limit - seq.num_prompt
            )
            assert seq.finish is FinishReason.LENGTH
    assert kv.pool.available == blocks
    assert kv.host.available == host_blocks


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_aborts_at_any_moment_lose_no_block(data) -> None:
    kv = KVManager(14, BLOCK, host_blocks=data.draw(st.sampled_from([0, 8])))
    scheduler = Scheduler(kv, max_num_seqs=3, token_budget=16)
    device = FakeDevice(scheduler)
    alive = []
    for i in range(data.draw(st.integers(1, 6))):
        group = sequences(
            f"r{i}", list(range(data.draw(st.integers(1, 25)))), data.draw(st.integers(1, 20))
        )
        scheduler.add(group)
        alive += group
    for _ in range(data.draw(st.integers(0, 25))):
        if alive and data.draw(st.booleans()):
            victim = alive.pop(data.draw(st.integers(0, len(alive) - 1)))
            if victim.status is not Status.FINISHED:
                scheduler.remove(victim)
        if scheduler.running or scheduler.waiting:
            device.run(scheduler.schedule())
    drain(scheduler, device)
    assert kv.pool.available == 14
    assert kv.host.available == kv.host.total


def test_siblings_share_the_prompt_blocks_without_prefix_caching() -> None:
    kv = KVManager(30, BLOCK, prefix=False)
    scheduler = Scheduler(kv, max_num_seqs=4, token_budget=64)
    group = sequences("r", list(range(17)), 6, n=3)
    scheduler.add(group)
    device = FakeDevice(scheduler)
    device.run(scheduler.schedule())
    device.run(scheduler.schedule())
    assert group[0].blocks[:4] == group[1].blocks[:4] == group[2].blocks[:4]
    assert [seq.cached_tokens for seq in group] == [0, 16, 16]


def test_second_identical_prompt_hits_the_prefix_cache() -> None:
    kv = KVManager(30, BLOCK)
    scheduler = Scheduler(kv, max_num_seqs=4, token_budget=64)
    device = FakeDevice(scheduler)
    for name in ("a", "b"):
        (seq,) = sequences(name, list(range(17)), 3)
        scheduler.add([seq])
        drain(scheduler, device)
    assert seq.cached_tokens == 16
    assert kv.hits == 16


def test_decodes_are_never_starved_by_a_long_prefill() -> None:
    kv = KVManager(60, BLOCK)
    scheduler = Scheduler(kv, max_num_seqs=4, token_budget=8)
    (short,) = sequences("short", [1, 2], 20)
    scheduler.add([short])
    device = FakeDevice(scheduler)
    device.run(scheduler.schedule())
    scheduler.add(sequences("long", list(range(100)), 2))
    for _ in range(10):
        plan = scheduler.schedule()
        assert plan.items[0].seq is short
        device.run(plan)


def test_lower_priority_number_goes_first() -> None:
    kv = KVManager(8, BLOCK)
    scheduler = Scheduler(kv, max_num_seqs=1, token_budget=8)
    (late,) = sequences("late", [1], 2, priority=5)
    (early,) = sequences("early", [1], 2, priority=0)
    scheduler.add([late])
    scheduler.add([early])
    assert scheduler.schedule().items[0].seq is early


def test_a_swapped_sequence_keeps_its_progress() -> None:
    kv = KVManager(6, BLOCK, host_blocks=6, prefix=False)
    scheduler = Scheduler(kv, max_num_seqs=2, token_budget=32)
    device = FakeDevice(scheduler)
    pair = [sequences(name, [ord(name)] * 8, 12)[0] for name in "ab"]
    scheduler.add([pair[0]])
    scheduler.add([pair[1]])
    while scheduler.num_preemptions == 0:
        device.run(scheduler.schedule())
    assert pair[1].status is Status.SWAPPED
    assert pair[1].num_computed > 0
    drain(scheduler, device)
    assert pair[1].tokens == expected([ord("b")] * 8, 0, 12)
