"""The engine's life cycle: admit, schedule, run, update, emit."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

from fd_core import environ
from fd_core.engine.guided import GuidedCompiler
from fd_core.engine.kv_manager import KVManager
from fd_core.engine.request import EngineOutput, EngineRequest, EngineStats, FinishReason, TokenLogprobs
from fd_core.engine.runner import Flight, ModelRunner
from fd_core.engine.scheduler import Scheduler, StepPlan
from fd_core.engine.sequence import Sequence, Status

log = logging.getLogger("fd.engine")


class RequestRefusedError(ValueError):
    """The request can never be served as it stands; nothing was changed."""


class Engine:
    """`add_request` and `abort` at any moment between two `step`s.

    `lookahead`: while the device runs a step the next one is planned and queued, and a step's tokens are
    read one call of `step` later. What is generated is the same; a sequence that a token has ended may
    still have a row in the step behind, whose result is thrown away.
    """

    def __init__(
        self,
        runner: ModelRunner,
        kv: KVManager,
        *,
        max_num_tokens: int,
        max_model_len: int,
        max_logprobs: int,
        eos_token_ids: list[int],
        guided: GuidedCompiler | None = None,
        seed: int | None = None,
        lookahead: bool = False,
    ) -> None:
        self.runner = runner
        self.lookahead = lookahead
        self.kv = kv
        self.scheduler = Scheduler(kv, runner.max_num_seqs, max_num_tokens)
        self.max_model_len = max_model_len
        self.max_logprobs = max_logprobs
        self.eos = frozenset(eos_token_ids)
        self.guided = guided
        self.requests: dict[str, list[Sequence]] = {}
        self.stats_now = EngineStats(blocks_total=kv.pool.total)
        self._flight: Flight | None = None  # launched and sampled, its tokens not read yet
        self._random: Callable[[], int] = _seed_source(seed)

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting or self._flight)

    def add_request(self, request: EngineRequest) -> None:
        """Queue a request; raises RequestRefusedError with the reason for one that cannot be served."""
        self._check(request)
        params = request.params
        room = self.max_model_len
        limit = (
            room
            if params.max_tokens is None
            else min(room, len(request.prompt_token_ids) + params.max_tokens)
        )
        seed = self._random() if params.seed is None else params.seed
        seqs = [Sequence(request, i, limit, seed, self.eos) for i in range(params.n)]
        if params.guided is not None:
            self._attach_grammar(request, seqs)
        self.requests[request.request_id] = seqs
        self.scheduler.add(seqs)
        self.stats_now.prompt_tokens += len(request.prompt_token_ids)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request, or one of its completions, in whatever state; unknown ids are ignored."""
        for seq in self.requests.get(request_id, []):
            if seq.status is not Status.FINISHED and index in (None, seq.index):
                self._retire(seq)
        self._forget_if_done(request_id)

    def step(self) -> list[EngineOutput]:
        """Run one step; returns the news of every sequence that has any.

        Schedule, launch, read the step before, sample. The device runs the launched step while the host
        reads and samples, so that it waits for the host only if a step takes longer here than there.
        """
        started = time.perf_counter()
        before, self._flight = self._flight, self._launch(self.scheduler.schedule())
        outputs = self._settle(before)
        self._sample(self._flight)
        if self._flight is not None and (self._flight.error or not self.lookahead):
            launched, self._flight = self._flight, None
            outputs += self._settle(launched)
        self._count(sum(len(output.token_ids) for output in outputs), time.perf_counter() - started)
        return outputs

    def stats(self) -> EngineStats:
        """Figures of this moment."""
        now, pool = self.stats_now, self.kv.pool
        now.running, now.waiting = len(self.scheduler.running), len(self.scheduler.waiting)
        now.blocks_cached = pool.cached
        now.blocks_free = pool.available - now.blocks_cached
        now.preemptions = self.scheduler.num_preemptions
        now.prefix_queries, now.prefix_hits = self.kv.queries, self.kv.hits
        return now

    # -- steps -------------------------------------------------------------------------------------

    def _launch(self, plan: StepPlan) -> Flight | None:
        if not plan:
            return None
        try:
            flight = self.runner.launch(plan)
        except Exception as error:
            return Flight(plan, error=error)
        self.scheduler.launched(plan)
        return flight

    def _sample(self, flight: Flight | None) -> None:
        if flight is None or flight.error is not None:
            return
        try:
            self.runner.sample(flight)
        except Exception as error:
            flight.error = error

    def _settle(self, flight: Flight | None) -> list[EngineOutput]:
        """Take the results of a step. Should it have failed, so has what was launched behind it."""
        if flight is None:
            return []
        try:
            if flight.error is not None:
                raise flight.error
            result = self.runner.collect(flight)
        except Exception as error:
            outputs = self._fail(flight.plan, error)
            self._undo()
            return outputs
        self.scheduler.settled(flight.plan)
        return [self._take(*one) for one in result.sampled if one[0].status is not Status.FINISHED]

    def _undo(self) -> None:
        """Plan anew what was launched behind a step that failed."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        for seq in self.scheduler.undo(flight.plan):
            self.runner.release(seq)

    # -- admission ---------------------------------------------------------------------------------

    def _check(self, request: EngineRequest) -> None:
        prompt, params = request.prompt_token_ids, request.params
        vocab = self.runner.model.config.vocab_size
        if request.request_id in self.requests:
            raise RequestRefusedError(f"request id {request.request_id!r} is in use")
        if not prompt:
            raise RequestRefusedError("prompt: want at least one token, have none")
        if len(prompt) >= self.max_model_len:
            raise RequestRefusedError(
                f"prompt: has {len(prompt)} tokens, and the model's context of {self.max_model_len} tokens "
                "must hold the prompt and at least one new token; shorten it"
            )
        bad = next((t for t in prompt if not 0 <= t < vocab), None)
        if bad is not None:
            raise RequestRefusedError(f"prompt: token id {bad} is outside [0, {vocab})")
        wanted = max(params.logprobs or 0, params.prompt_logprobs or 0)
        if wanted > self.max_logprobs:
            raise RequestRefusedError(f"logprobs: want at most {self.max_logprobs}, have {wanted}")
        if params.n > self.runner.max_num_seqs:
            raise RequestRefusedError(f"n: want at most {self.runner.max_num_seqs}, have {params.n}")
        self._check_ids(request, vocab)
        self._check_bad_words(request)

    def _check_ids(self, request: EngineRequest, vocab: int) -> None:
        params = request.params
        named = {
            "stop_token_ids": params.stop_token_ids,
            "allowed_token_ids": params.allowed_token_ids or (),
            "logit_bias": tuple(params.logit_bias),
            "bad_words": tuple(t for word in params.bad_words for t in word),
        }
        for name, ids in named.items():
            bad = next((t for t in ids if not 0 <= t < vocab), None)
            if bad is not None:
                raise RequestRefusedError(f"{name}: token id {bad} is outside [0, {vocab})")

    def _check_bad_words(self, request: EngineRequest) -> None:
        words = request.params.bad_words
        most, longest = environ.value("FD_MAX_BAD_WORDS_NUM"), environ.value("FD_BAD_WORDS_MAX_LEN")
        if len(words) > most:
            raise RequestRefusedError(
                f"bad_words: want at most {most} (FD_MAX_BAD_WORDS_NUM), have {len(words)}"
            )
        if any(not 0 < len(word) <= longest for word in words):
            raise RequestRefusedError(
                f"bad_words: want 1..{longest} tokens a word (FD_BAD_WORDS_MAX_LEN), have "
                f"{sorted({len(word) for word in words})}"
            )

    def _attach_grammar(self, request: EngineRequest, seqs: list[Sequence]) -> None:
        if self.guided is None:
            raise RequestRefusedError("guided decoding: this engine was started without a tokenizer")
        assert request.params.guided is not None
        for seq in seqs:
            try:
                seq.guided = self.guided.start(*request.params.guided)
            except ValueError as error:
                raise RequestRefusedError(f"guided decoding: {error}") from error

    # -- results ----------------------------------------------------------------------------------

    def _take(self, seq: Sequence, token: int, logprobs: TokenLogprobs | None) -> EngineOutput:
        if seq.limit == seq.num_prompt:  # scoring only: what was sampled is not wanted
            seq.finish = FinishReason.LENGTH
            return self._end(seq, [], None)
        seq.append(token)
        if seq.guided is not None:
            self._advance_grammar(seq, token)
        self.runner.append(seq, token)
        return self._end(seq, [token], logprobs)

    def _end(self, seq: Sequence, tokens: list[int], logprobs: TokenLogprobs | None) -> EngineOutput:
        output = self._output(seq, tokens, logprobs)
        if seq.finish is not None:
            self._retire(seq)
            self._forget_if_done(seq.request.request_id)
        return output

    def _advance_grammar(self, seq: Sequence, token: int) -> None:
        """A grammar that breaks ends its own request only."""
        error = seq.guided.accept(token)
        if error and seq.finish is None:
            seq.finish, seq.error = FinishReason.ERROR, error

    def _output(self, seq: Sequence, tokens: list[int], logprobs: TokenLogprobs | None) -> EngineOutput:
        first = seq.num_generated <= 1
        scored = first and seq.params.prompt_logprobs is not None
        return EngineOutput(
            request_id=seq.request.request_id,
            index=seq.index,
            token_ids=tokens,
            logprobs=[] if logprobs is None else [logprobs],
            prompt_logprobs=seq.prompt_logprobs if scored else None,
            finish_reason=seq.finish,
            stop_token_id=seq.stop_token,
            num_cached_tokens=seq.cached_tokens,
            first_token_time=seq.first_token_time,
            queue_time=seq.scheduled_time - seq.arrival,
            error=seq.error,
        )

    def _fail(self, plan: StepPlan, error: Exception) -> list[EngineOutput]:
        """The step broke on the device: its requests end with the reason, all others live on."""
        log.exception("step with %d sequences failed", len(plan.items))
        self.scheduler.distrust(plan)
        alive = [item.seq for item in plan.items if item.seq.status is not Status.FINISHED]
        victims = [s for seq in alive for s in self.requests.get(seq.request.request_id, [])]
        outputs = []
        for seq in dict.fromkeys(s for s in victims if s.status is not Status.FINISHED):
            seq.finish, seq.error = FinishReason.ERROR, f"{type(error).__name__}: {error}"
            outputs.append(self._ending(seq))
            self._retire(seq)
            self._forget_if_done(seq.request.request_id)
        return outputs

    @staticmethod
    def _ending(seq: Sequence) -> EngineOutput:
        return EngineOutput(
            request_id=seq.request.request_id, index=seq.index, finish_reason=seq.finish, error=seq.error
        )

    def _retire(self, seq: Sequence) -> None:
        self.scheduler.remove(seq)
        self.runner.release(seq)

    def _forget_if_done(self, request_id: str) -> None:
        if all(seq.status is Status.FINISHED for seq in self.requests.get(request_id, [])):
            self.requests.pop(request_id, None)

    def _count(self, generated: int, seconds: float) -> None:
        now = self.stats_now
        now.steps += 1
        now.generation_tokens += generated
        now.last_step_seconds = seconds
        now.last_step_time = time.time()


def _seed_source(seed: int | None) -> Callable[[], int]:
    """Seeds for requests that bring none: from the system, or repeatable from the engine's own."""
    if seed is None:
        return lambda: secrets.randbits(63)
    import random

    generator = random.Random(seed)
    return lambda: generator.getrandbits(63)
