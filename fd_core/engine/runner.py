"""Runs one step plan on the device: inputs, model, sampler. The only runner, whatever the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fd_core.api.platform import Event
from fd_core.api.tensor import Tensor
from fd_core.engine.graphs import DecodeGraphs, capture_sizes
from fd_core.engine.kv_pools import KVPools
from fd_core.engine.request import TokenLogprobs
from fd_core.engine.sampler import Sampler, Sampling
from fd_core.engine.sampling_state import IDLE, RowState
from fd_core.engine.scheduler import Scheduled, StepPlan
from fd_core.engine.sequence import Sequence, Status
from fd_core.engine.step_inputs import InputBuilder, Slots, StepInputs
from fd_core.engine.transit import Transit
from fd_core.models.base import CausalLM


@dataclass(slots=True)
class StepResult:
    """Sampled tokens of the sequences that completed their pending tokens, in plan order."""

    sampled: list[tuple[Sequence, int, TokenLogprobs | None]] = field(default_factory=list)


@dataclass(slots=True)
class Flight:
    """A step on its way. `seqs`: rows of `logits`. `error`: it never got as far as the device."""

    plan: StepPlan
    seqs: list[Sequence] = field(default_factory=list)
    logits: Tensor | None = None
    sampling: Sampling | None = None
    mark: Event | None = None
    error: Exception | None = None


class ModelRunner:
    """Model, persistent buffers, KV pools and sampler of one device.

    `lookahead`: a step may be launched before the tokens of the one before were read; it takes them on
    the device. Several runners may share a model (a dummy run has its own buffers and pools): the
    model's scratch memory holds nothing between steps.
    """

    def __init__(
        self,
        model: CausalLM,
        pools: KVPools,
        *,
        block_size: int,
        max_num_seqs: int,
        max_num_tokens: int,
        max_model_len: int,
        use_graphs: bool = True,
        graph_sizes: tuple[int, ...] = (),
        lookahead: bool = False,
    ) -> None:
        context = model.context
        self.model = model
        self.pools = pools
        self.ops = context.ops
        self.platform = context.platform
        self.max_num_seqs = max_num_seqs
        self.on_logits: Callable[[Tensor], None] | None = None  # sees logits before they are sampled from
        width = -(-max_model_len // block_size)
        self.slots = Slots(max_num_seqs, max_model_len, width)
        self.transit = Transit(context.platform, context.device)
        sizes = (block_size, max_num_seqs, max_num_tokens)
        self.inputs = InputBuilder(self.transit, self.slots, *sizes, lookahead)
        self.graphs: DecodeGraphs | None = None
        if use_graphs and "graph_capture" in context.device.features:
            self.graphs = DecodeGraphs(
                context.platform,
                context.ops,
                self.inputs,
                self._all_logits,
                capture_sizes(max_num_seqs, graph_sizes),
            )
        self.sampler = Sampler(
            context.ops,
            context.platform,
            context.device,
            model.config.vocab_size,
            max_num_seqs,
            self.transit,
        )

    def execute(self, plan: StepPlan) -> StepResult:
        """`launch`, `sample`, `collect`: a step on its own."""
        flight = self.launch(plan)
        self.sample(flight)
        return self.collect(flight)

    def launch(self, plan: StepPlan) -> Flight:
        """Queue the model's work. Sequences are not changed, except for their prompt log-probabilities
        (a step with any waits for them)."""
        self._prepare(plan)
        self.transit.next_step()
        seqs = [item.seq for item in plan.items if item.completes]
        return Flight(plan, seqs, self._forward(plan.items) if plan.items else None)

    def sample(self, flight: Flight) -> None:
        """Queue the sampling; every token of the steps before must have been taken. Sequences that have
        ended since the launch are drawn as well, for nobody."""
        live = [seq.status is not Status.FINISHED for seq in flight.seqs]
        if flight.logits is not None and any(live):
            rows = [sampler_row(s) if ok else IDLE for s, ok in zip(flight.seqs, live, strict=True)]
            out = self.inputs.sampled.rows(len(rows))
            flight.sampling = self.sampler.launch(flight.logits, rows, out)
            for row, seq in enumerate(flight.seqs):
                seq.unread_row = row
        flight.mark = self.transit.mark()

    def collect(self, flight: Flight) -> StepResult:
        """Wait for the step and read what it sampled. A failure of the device surfaces here."""
        assert flight.mark is not None
        flight.mark.wait()
        if flight.sampling is None:
            return StepResult()
        found = self.sampler.collect(flight.sampling)
        return StepResult(list(zip(flight.seqs, found.token_ids, found.logprobs, strict=True)))

    def warm_up(self) -> None:
        """Record the decode steps that the device can replay, before any request waits."""
        if self.graphs is not None:
            self.graphs.warm_up(self.graphs.sizes)

    def _forward(self, items: list[Scheduled]) -> Tensor | None:
        """Logits of the rows that are sampled from; None if there are none."""
        logits = self.graphs.run(items) if self.graphs is not None else None
        if logits is None:
            inputs = self.inputs.build(items)
            hidden = self._hidden(inputs)
            self._prompt_logprobs(items, hidden)
            if not inputs.logits_indices.numel:
                return None
            logits = self.model.compute_logits(hidden, inputs.logits_indices)
        if self.on_logits is not None:
            self.on_logits(logits)
        return logits

    def _hidden(self, inputs: StepInputs) -> Tensor:
        if inputs.token_table is not None:
            self.ops.gather_tokens(inputs.token_table, inputs.token_source, inputs.input_ids)
        return self.model.forward(inputs.input_ids, inputs.positions, inputs.batch, self.pools.device)

    def _all_logits(self, inputs: StepInputs) -> Tensor:
        return self.model.compute_logits(self._hidden(inputs), None)

    def append(self, seq: Sequence, token: int) -> None:
        """`token` was appended to `seq`; later steps read it from the slot."""
        self.slots.append(seq, token)
        if seq.sampler_row is not None:
            seq.sampler_row.generated_ids.append(token)

    def release(self, seq: Sequence) -> None:
        """`seq` runs no more (for now): its slot is free."""
        self.slots.release(seq)

    def _prepare(self, plan: StepPlan) -> None:
        for seq in plan.preempted:
            self.slots.release(seq)
        self.pools.swap_out(plan.moves.swap_out)
        self.pools.swap_in(plan.moves.swap_in)
        for item in plan.items:
            self.slots.sync(item.seq)

    def _prompt_logprobs(self, items: list[Scheduled], hidden: Tensor) -> None:
        first = 0
        for item in items:
            wanted = item.seq.params.prompt_logprobs is not None and not item.decodes
            if wanted and item.seq.num_generated == 0:
                self._score_chunk(item, first, hidden)
            first += item.count

    def _score_chunk(self, item: Scheduled, first: int, hidden: Tensor) -> None:
        """Row i of the chunk predicts prompt token start + i + 1; the prompt's first has none."""
        seq, start = item.seq, item.start
        if start == 0:
            seq.prompt_logprobs = [None]
        last = min(item.count, seq.num_prompt - 1 - start)
        for begin in range(0, last, self.max_num_seqs):
            rows = range(begin, min(begin + self.max_num_seqs, last))
            indices = self.sampler.staged.put("prompt", np.array([first + r for r in rows], np.int32))
            targets = [seq.tokens[start + r + 1] for r in rows]
            logits = self.model.compute_logits(hidden, indices)
            seq.prompt_logprobs += self.sampler.score(logits, targets, seq.params.prompt_logprobs or 0)


def sampler_row(seq: Sequence) -> RowState:
    """The sampler's view of `seq`, kept while it runs; lists are shared, not copied."""
    row: RowState | None = seq.sampler_row
    if row is None:
        row = seq.sampler_row = RowState(
            params=seq.params,
            prompt_ids=seq.tokens[: seq.num_prompt],
            generated_ids=seq.tokens[seq.num_prompt :],
            seed=seq.seed,
            eos_ids=tuple(seq.eos),
        )
    row.bitmask = seq.guided.bitmask() if seq.guided is not None else None
    return row
