"""Runs one step plan on the device: inputs, model, sampler. The only runner, whatever the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fd_core.api.tensor import Tensor
from fd_core.engine.graphs import DecodeGraphs
from fd_core.engine.kv_pools import KVPools
from fd_core.engine.request import TokenLogprobs
from fd_core.engine.sampler import Sampler
from fd_core.engine.sampling_state import RowState
from fd_core.engine.scheduler import Scheduled, StepPlan
from fd_core.engine.sequence import Sequence
from fd_core.engine.step_inputs import InputBuilder, Slots, StepInputs
from fd_core.models.base import CausalLM


@dataclass(slots=True)
class StepResult:
    """Sampled tokens of the sequences that completed their pending tokens, in plan order."""

    sampled: list[tuple[Sequence, int, TokenLogprobs | None]] = field(default_factory=list)


class ModelRunner:
    """Model, persistent buffers, KV pools and sampler of one device.

    Several runners may share a model (a dummy run has its own buffers and pools): the model's
    scratch memory holds nothing between steps.
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
        self.inputs = InputBuilder(context.platform, self.slots, block_size, max_num_seqs, max_num_tokens)
        self.graphs: DecodeGraphs | None = None
        if use_graphs:
            self.graphs = DecodeGraphs(context.platform, self.inputs, self._run_model, max_num_seqs)
        self.sampler = Sampler(
            context.ops, context.platform, context.device, model.config.vocab_size, max_num_seqs
        )

    def execute(self, plan: StepPlan) -> StepResult:
        """Run `plan`; sequences are not changed, except for their prompt log-probabilities."""
        self._prepare(plan)
        inputs, hidden = self._forward(plan.items)
        self._prompt_logprobs(plan.items, hidden)
        return self._sample(
            [item.seq for item in plan.items if item.completes], hidden, inputs.logits_indices
        )

    def _forward(self, items: list[Scheduled]) -> tuple[StepInputs, Tensor]:
        captured = self.graphs.run(items) if self.graphs is not None else None
        if captured is not None:
            return captured
        inputs = self.inputs.build(items)
        return inputs, self._run_model(inputs)

    def _run_model(self, inputs: StepInputs) -> Tensor:
        return self.model.forward(inputs.input_ids, inputs.positions, inputs.batch, self.pools.device)

    def append(self, seq: Sequence, token: int) -> None:
        """`token` was appended to `seq`; the next step reads it from the slot."""
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

    def _sample(self, seqs: list[Sequence], hidden: Tensor, indices: Tensor) -> StepResult:
        if not seqs:
            return StepResult()
        logits = self.model.compute_logits(hidden, indices)
        if self.on_logits is not None:
            self.on_logits(logits)
        result = self.sampler.sample(logits, [sampler_row(seq) for seq in seqs])
        return StepResult(list(zip(seqs, result.token_ids, result.logprobs, strict=True)))

    def _prompt_logprobs(self, items: list[Scheduled], hidden: Tensor) -> None:
        first = 0
        for item in items:
            if item.seq.params.prompt_logprobs is not None and item.seq.num_generated == 0:
                self._score_chunk(item, first, hidden)
            first += item.count

    def _score_chunk(self, item: Scheduled, first: int, hidden: Tensor) -> None:
        """Row i of the chunk predicts prompt token start + i + 1; the prompt's first has none."""
        seq, start = item.seq, item.seq.num_computed
        if start == 0:
            seq.prompt_logprobs = [None]
        last = min(item.count, seq.num_prompt - 1 - start)
        for begin in range(0, last, self.max_num_seqs):
            rows = range(begin, min(begin + self.max_num_seqs, last))
            indices = self.platform.from_host(np.array([first + r for r in rows], np.int32))
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
