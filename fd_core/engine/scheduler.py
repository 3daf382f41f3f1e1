"""Which tokens of which sequences run in the next step."""

from __future__ import annotations

import bisect
import time
from dataclasses import dataclass, field

from fd_core.engine.kv_manager import BlockMoves, KVManager
from fd_core.engine.sequence import Sequence, Status


@dataclass(slots=True)
class Scheduled:
    """`count` tokens of `seq` from position `start` on.

    `completes`: after this step the sequence has no pending token, so its last row is sampled.
    `decodes`: its one token is the last one it generated.
    """

    seq: Sequence
    count: int
    start: int
    completes: bool
    decodes: bool

    @property
    def end(self) -> int:
        return self.start + self.count


@dataclass(slots=True)
class StepPlan:
    """One step: decodes first, then prefill chunks; block copies to make before it."""

    items: list[Scheduled] = field(default_factory=list)
    moves: BlockMoves = field(default_factory=BlockMoves)
    preempted: list[Sequence] = field(default_factory=list)
    num_tokens: int = 0

    def add(self, seq: Sequence, count: int) -> None:
        pending = seq.num_pending
        decodes = pending == 1 and seq.in_decode
        self.items.append(Scheduled(seq, count, seq.num_computed, count == pending, decodes))
        self.num_tokens += count

    def __bool__(self) -> bool:
        """Whether there is anything to do on the device."""
        return bool(self.items or self.preempted)


class Scheduler:
    """Continuous batching under a token budget, with chunked prefill and preemption from the tail.

    `waiting` is sorted by `Sequence.key`; a preempted sequence keeps its key and so returns to the
    front. `running` is in order of admission.

    A step may be planned while the one before still runs (`launched`, not yet `settled`): each sequence
    goes on with a token nobody has read. Should that token end it, its row is in vain. Blocks are given
    back and handed out without waiting, because the device runs steps and block copies in their order.
    """

    def __init__(self, kv: KVManager, max_num_seqs: int, token_budget: int) -> None:
        self.kv = kv
        self.max_num_seqs = max_num_seqs
        self.token_budget = token_budget
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._siblings: dict[str, list[Sequence]] = {}

    def add(self, seqs: list[Sequence]) -> None:
        """Take all completions of one request."""
        if len(seqs) > 1:
            self._siblings[seqs[0].request.request_id] = seqs
        for seq in seqs:
            bisect.insort(self.waiting, seq, key=lambda s: s.key)

    def remove(self, seq: Sequence) -> None:
        """`seq` has finished or is aborted: whatever its state, its blocks come back."""
        if seq.status is Status.RUNNING:
            self.running.remove(seq)
        elif seq.status in (Status.WAITING, Status.SWAPPED):
            self.waiting.remove(seq)
        self.kv.free(seq)
        seq.status = Status.FINISHED
        group = self._siblings.get(seq.request.request_id, [])
        if group and all(s.status is Status.FINISHED for s in group):
            del self._siblings[seq.request.request_id]

    def schedule(self) -> StepPlan:
        """Running sequences first; new ones only when nobody had to be preempted."""
        plan = StepPlan()
        before = self.num_preemptions
        for seqs in self._ready():
            self._plan_running(seqs, plan)
        if self.num_preemptions == before:
            self._admit(plan)
        return plan

    def launched(self, plan: StepPlan) -> None:
        """The step is queued: the next one may be planned behind it."""
        for item in plan.items:
            item.seq.num_computed = item.end
            item.seq.num_unread += item.completes

    def settled(self, plan: StepPlan) -> None:
        """The step has run: its tokens are in the cache and what it sampled has been read."""
        for item in plan.items:
            item.seq.num_unread -= item.completes
            if item.seq.status is Status.RUNNING:  # else its blocks have gone meanwhile
                self.kv.computed(item.seq, item.end)

    def advance(self, plan: StepPlan) -> None:
        """Launched and settled at once."""
        self.launched(plan)
        self.settled(plan)

    def undo(self, plan: StepPlan) -> list[Sequence]:
        """The step was launched behind a broken one: its sequences are computed anew. Returns them."""
        undone = [item.seq for item in plan.items if item.seq.status is Status.RUNNING]
        for seq in undone:
            self.running.remove(seq)
            self._start_over(seq)
            bisect.insort(self.waiting, seq, key=lambda s: s.key)
        self.distrust(plan)
        return undone

    def distrust(self, plan: StepPlan) -> None:
        """`plan` broke, perhaps before its copies were made: what it swapped out is computed anew."""
        for seq in plan.preempted:
            if seq.status is Status.SWAPPED:
                self._start_over(seq)

    def _start_over(self, seq: Sequence) -> None:
        self.kv.free(seq)
        seq.num_computed = seq.num_unread = 0
        seq.status = Status.WAITING

    def _ready(self) -> tuple[list[Sequence], list[Sequence]]:
        """Running sequences that decode, and those with more to catch up on."""
        decoding: list[Sequence] = []
        others: list[Sequence] = []
        for seq in self.running:
            if not (seq.num_unread and seq.ends_unread):
                (decoding if seq.in_decode else others).append(seq)
        return decoding, others

    def _plan_running(self, seqs: list[Sequence], plan: StepPlan) -> None:
        for seq in seqs:
            count = min(seq.num_pending, self.token_budget - plan.num_tokens)
            if count <= 0:
                return
            if seq.status is Status.RUNNING and self._make_room(seq, seq.num_computed + count, plan):
                plan.add(seq, count)

    def _make_room(self, seq: Sequence, tokens: int, plan: StepPlan) -> bool:
        """Grow `seq`, preempting unplanned sequences from the tail, itself last."""
        while not self.kv.grow(seq, tokens):
            planned = {id(item.seq) for item in plan.items}
            victim = next(s for s in reversed(self.running) if id(s) not in planned)
            self._preempt(victim, plan)
            if victim is seq:
                return False
        return True

    def _preempt(self, seq: Sequence, plan: StepPlan) -> None:
        self.running.remove(seq)
        self.num_preemptions += 1
        plan.preempted.append(seq)
        if self.kv.swap_out(seq, plan.moves):
            seq.status = Status.SWAPPED
        else:
            self.kv.free(seq)
            seq.num_computed = 0
            seq.status = Status.WAITING
        bisect.insort(self.waiting, seq, key=lambda s: s.key)

    def _admit(self, plan: StepPlan) -> None:
        for seq in list(self.waiting):
            if len(self.running) >= self.max_num_seqs or plan.num_tokens >= self.token_budget:
                return
            if self._must_wait_for_sibling(seq):
                continue
            if not self._start(seq, plan):
                return  # first come, first served: nobody overtakes for being smaller
            self.waiting.remove(seq)
            seq.status = Status.RUNNING
            seq.scheduled_time = seq.scheduled_time or time.time()
            self.running.append(seq)

    def _start(self, seq: Sequence, plan: StepPlan) -> bool:
        if seq.status is Status.SWAPPED:
            return self._resume(seq, plan)
        self._find_prefix(seq)
        count = min(seq.num_pending, self.token_budget - plan.num_tokens)
        if not self.kv.grow(seq, seq.num_computed + count):
            self.kv.free(seq)
            seq.num_computed = 0
            return False
        plan.add(seq, count)
        return True

    def _resume(self, seq: Sequence, plan: StepPlan) -> bool:
        count = min(seq.num_pending, self.token_budget - plan.num_tokens)
        if self.kv.blocks_for(seq.num_computed + count) > self.kv.pool.available:
            return False
        if not (self.kv.swap_in(seq, plan.moves) and self.kv.grow(seq, seq.num_computed + count)):
            raise RuntimeError(
                f"request {seq.request.request_id}: swapping in found fewer blocks than counted"
            )
        plan.add(seq, count)
        return True

    def _find_prefix(self, seq: Sequence) -> None:
        source = self._fork_source(seq)
        if source is not None and seq.num_generated == 0:
            self.kv.fork_prompt(seq, source)
        else:
            self.kv.match_prefix(seq)

    def _fork_source(self, seq: Sequence) -> Sequence | None:
        group = self._siblings.get(seq.request.request_id, [])
        ready = (s for s in group if s is not seq and s.blocks and s.num_computed >= s.num_prompt - 1)
        return next(ready, None)

    def _must_wait_for_sibling(self, seq: Sequence) -> bool:
        """A sibling is computing the same prompt: fork it afterwards instead of computing it twice."""
        group = self._siblings.get(seq.request.request_id, [])
        busy = any(
            s.status is Status.RUNNING and s.num_computed < s.num_prompt for s in group if s is not seq
        )
        return busy and self._fork_source(seq) is None
