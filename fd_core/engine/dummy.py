"""Runs of made-up requests: to warm up, to capture, and to measure what a full step needs.

Nothing reaches a client and no state of the engine is touched: a dummy run has buffers, slots, pools
and a sampler of its own over the same model. Contract: modules.md §4.4.
"""

from __future__ import annotations

import gc
import resource
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fd_core.api.tensor import Tensor
from fd_core.engine.kv_manager import KVManager
from fd_core.engine.kv_pools import KVPools
from fd_core.engine.request import EngineRequest, SamplingParams
from fd_core.engine.runner import ModelRunner
from fd_core.engine.scheduler import Scheduler, StepPlan
from fd_core.engine.sequence import Sequence
from fd_core.models.base import CausalLM

Mode = Literal["prefill", "decode", "mixed"]
PHASES: tuple[Mode, ...] = ("prefill", "decode", "mixed")


@dataclass(frozen=True, slots=True)
class DummyReport:
    """`tokens` run through the model, seconds in all; both by phase of the step (a mixed step has
    prefill and decode rows); bytes at the peak (of the device, or of the process where memory is the
    host's); whether every logit was finite."""

    tokens: int
    wall_time: float
    per_phase_time: dict[str, float] = field(default_factory=dict)
    per_phase_tokens: dict[str, int] = field(default_factory=dict)
    peak_memory: int = 0
    finite_logits: bool = True


class DummyRunner:
    """`run` any batch of prompts and decode lengths on `model`."""

    def __init__(
        self, model: CausalLM, *, max_num_tokens: int, max_model_len: int, block_size: int
    ) -> None:
        self.model = model
        self.max_num_tokens = max_num_tokens
        self.max_model_len = max_model_len
        self.block_size = block_size

    def run(
        self,
        batch_size: int,
        prompt_len: int | list[int],
        decode_len: int = 0,
        mode: Mode = "mixed",
        use_graph: bool | None = None,
        seed: int = 0,
    ) -> DummyReport:
        """`mode` "prefill" leaves the decode steps out; "decode" times them alone. `use_graph` None:
        captured decode steps where the device has them.

        Raises ValueError for sizes below 1, a list of another length than the batch, or a sum of
        prompt and decode lengths beyond the model's context.
        """
        lengths = self._lengths(batch_size, prompt_len, decode_len)
        decode_len = 0 if mode == "prefill" else decode_len
        seqs = self._sequences(lengths, decode_len, seed)
        runner, scheduler = self._private(seqs, use_graph is not False)
        times: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        tokens: dict[str, int] = dict.fromkeys(PHASES, 0)
        finite: list[bool] = []
        runner.on_logits = lambda logits: finite.append(self._finite(logits))
        started = time.perf_counter()
        while any(seq.finish is None for seq in seqs):
            plan = scheduler.schedule()
            phase = _phase(plan)
            begun = time.perf_counter()
            self._step(runner, scheduler, plan)
            times[phase] += time.perf_counter() - begun
            tokens[phase] += plan.num_tokens
        return DummyReport(
            tokens=tokens["decode"] if mode == "decode" else sum(tokens.values()),
            wall_time=time.perf_counter() - started,
            per_phase_time=times,
            per_phase_tokens=tokens,
            peak_memory=self._peak(),
            finite_logits=all(finite),
        )

    def _lengths(self, batch_size: int, prompt_len: int | list[int], decode_len: int) -> list[int]:
        lengths = [prompt_len] * batch_size if isinstance(prompt_len, int) else list(prompt_len)
        if batch_size < 1 or len(lengths) != batch_size or min(lengths) < 1 or decode_len < 0:
            raise ValueError(
                f"dummy run: want batch_size >= 1, that many prompt lengths >= 1 and decode_len >= 0; "
                f"have {batch_size}, {prompt_len}, {decode_len}"
            )
        if max(lengths) + decode_len > self.max_model_len:
            raise ValueError(
                f"dummy run: prompt {max(lengths)} + decode {decode_len} exceeds max_model_len "
                f"{self.max_model_len}"
            )
        if batch_size > self.max_num_tokens:
            raise ValueError(
                f"dummy run: batch of {batch_size} exceeds the step's {self.max_num_tokens} tokens"
            )
        return lengths

    def _sequences(self, lengths: list[int], decode_len: int, seed: int) -> list[Sequence]:
        rng = np.random.default_rng(seed)
        params = SamplingParams(temperature=0.0, ignore_eos=True)
        vocab = self.model.config.vocab_size
        return [
            Sequence(
                EngineRequest(
                    request_id=f"dummy-{i}",
                    prompt_token_ids=rng.integers(0, vocab, length).tolist(),
                    params=params,
                ),
                0,
                length + max(1, decode_len),
                seed,
                frozenset(),
            )
            for i, length in enumerate(lengths)
        ]

    def graph_bytes(self, max_num_seqs: int, graph_sizes: tuple[int, ...] = ()) -> int:
        """Device memory that the recorded decode steps of an engine for `max_num_seqs` sequences will
        take: that of the largest, which others may share, and for each other as much as the second
        largest adds. 0 where the device records none."""
        runner = self._runner(max_num_seqs, 1, graph_sizes=graph_sizes)
        if runner.graphs is None or not runner.graphs.enabled:
            return 0
        gc.collect()  # or the memory of earlier runs may come back in between
        sizes = runner.graphs.sizes[:-3:-1]
        largest, *second = [self._recording_bytes(runner, size) for size in sizes]
        return largest + sum(second) * (len(runner.graphs.sizes) - 1)

    def _recording_bytes(self, runner: ModelRunner, size: int) -> int:
        assert runner.graphs is not None
        before = runner.platform.memory().used
        runner.graphs.warm_up([size])
        runner.platform.synchronize()
        return max(0, runner.platform.memory().used - before)

    def _runner(self, max_num_seqs: int, blocks: int, **graphs: Any) -> ModelRunner:
        context = self.model.context
        return ModelRunner(
            self.model,
            KVPools(context.platform, context.ops, self.model.kv_layouts(), blocks),
            block_size=self.block_size,
            max_num_seqs=max_num_seqs,
            max_num_tokens=self.max_num_tokens,
            max_model_len=self.max_model_len,
            **graphs,
        )

    def _private(self, seqs: list[Sequence], use_graphs: bool) -> tuple[ModelRunner, Scheduler]:
        blocks = sum(-(-seq.limit // self.block_size) for seq in seqs)
        runner = self._runner(len(seqs), blocks, use_graphs=use_graphs)
        scheduler = Scheduler(
            KVManager(blocks, self.block_size, prefix=False), len(seqs), self.max_num_tokens
        )
        for seq in seqs:
            scheduler.add([seq])
        return runner, scheduler

    def _step(self, runner: ModelRunner, scheduler: Scheduler, plan: StepPlan) -> None:
        result = runner.execute(plan)
        scheduler.advance(plan)
        for seq, token, _ in result.sampled:
            seq.append(token)
            runner.append(seq, token)
            if seq.finish is not None:
                scheduler.remove(seq)
                runner.release(seq)

    def _finite(self, logits: Tensor) -> bool:
        return bool(np.isfinite(self.model.context.platform.to_host(logits).sum()))

    def _peak(self) -> int:
        device = self.model.context.device
        if "host_memory" in device.features:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return self.model.context.platform.memory().used


def _phase(plan: StepPlan) -> Mode:
    decoding = [item.decodes for item in plan.items]
    return "decode" if all(decoding) else "mixed" if any(decoding) else "prefill"
