"""An engine without a model: token i is a hash of (prompt, seed, index, i).

Everything it says can be computed by a test, so "nothing lost, doubled or crossed over" is a matter of
equality. It schedules, counts KV blocks, honours the parameters that shape a stream, and can be told
to stall or die.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from fd_core.engine.client import EngineClient, EngineDeadError
from fd_core.engine.request import (
    EngineOutput,
    EngineRequest,
    EngineStats,
    FinishReason,
    ModelInfo,
    TokenLogprobs,
)
from fd_core.testkit.toy_text import EOS, VOCAB_SIZE

ALPHABET = tuple(b"abcdefghijklmnopqrstuvwxyz ABCDEFGHIJ0123456789.,\n")
Script = Callable[[EngineRequest, int], "list[int] | None"]


def toy_info(**changes: int | str) -> ModelInfo:
    """The `ModelInfo` that goes with `toy_text`."""
    info = ModelInfo(
        name="toy",
        vocab_size=VOCAB_SIZE,
        max_model_len=2048,
        eos_token_ids=[EOS],
        platform="echo",
        device="none",
        dtype="none",
        max_num_seqs=64,
    )
    for name, value in changes.items():
        setattr(info, name, value)
    return info


def token_at(prompt: Sequence[int], seed: int | None, index: int, i: int, allowed: Sequence[int]) -> int:
    """The i-th token of completion `index`, out of `allowed`."""
    key = repr((list(prompt), seed, index, i)).encode()
    return allowed[int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % len(allowed)]


def expected_tokens(request: EngineRequest, index: int, count: int) -> list[int]:
    """What the engine says for completion `index`, stop tokens aside."""
    allowed = request.params.allowed_token_ids or ALPHABET
    return [
        token_at(request.prompt_token_ids, request.params.seed, index, i, allowed) for i in range(count)
    ]


def logprob_of(token: int, count: int) -> TokenLogprobs:
    """A made-up but consistent distribution: the token is best, neighbours follow."""
    ids = [(token + step) % VOCAB_SIZE for step in range(count)]
    return TokenLogprobs(
        -0.25 - token / 1000, 1, ids, [-0.25 - token / 1000 - step for step in range(count)]
    )


@dataclass(eq=False)
class _Live:
    request: EngineRequest
    arrival: float
    outputs: asyncio.Queue[EngineOutput | EngineDeadError] = field(default_factory=asyncio.Queue)
    made: dict[int, int] = field(default_factory=dict)
    scripts: dict[int, list[int] | None] = field(default_factory=dict)
    queue_time: float = 0.0
    first: float = 0.0

    def blocks(self, size: int) -> int:
        prompt = len(self.request.prompt_token_ids)
        return sum(math.ceil((prompt + made + 1) / size) for made in self.made.values())


class EchoEngine(EngineClient):
    """`step_time` seconds a step; every running completion makes one token a step.

    `script(request, index)` may give the tokens of a completion in place of the hash.
    """

    def __init__(
        self,
        info: ModelInfo | None = None,
        *,
        step_time: float = 0.0,
        blocks: int = 4096,
        block_size: int = 16,
        script: Script | None = None,
    ) -> None:
        self.info = info or toy_info()
        self.step_time = step_time
        self.stalled = False
        self._script = script
        self._block_size = block_size
        self._live: dict[str, _Live] = {}
        self._waiting: deque[_Live] = deque()
        self._running: list[_Live] = []
        self._stats = EngineStats(blocks_total=blocks, blocks_free=blocks)
        self._dead = ""
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self.aborted: list[str] = []

    @property
    def live(self) -> int:
        """Requests the engine still holds."""
        return len(self._live)

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        if self._dead:
            raise EngineDeadError(self._dead)
        if refusal := self._refusal(request):
            yield EngineOutput(
                request_id=request.request_id, finish_reason=FinishReason.ERROR, error=refusal, refused=True
            )
            return
        live = self._admit(request)
        try:
            remaining = request.params.n
            while remaining:
                output = await live.outputs.get()
                if isinstance(output, EngineDeadError):
                    raise output
                remaining -= output.finish_reason is not None
                yield output
        finally:
            self._forget(live)

    def _refusal(self, request: EngineRequest) -> str:
        if request.request_id in self._live:
            return f"request id {request.request_id} is in use"
        need = math.ceil(
            (len(request.prompt_token_ids) + (request.params.max_tokens or 0)) / self._block_size
        )
        if need * request.params.n > self._stats.blocks_total:
            return f"needs {need * request.params.n} KV blocks, the pool has {self._stats.blocks_total}"
        return ""

    def _admit(self, request: EngineRequest) -> _Live:
        live = _Live(request, time.time())
        for index in range(request.params.n):
            live.made[index] = 0
            live.scripts[index] = self._script(request, index) if self._script else None
        self._live[request.request_id] = live
        self._waiting.append(live)
        self._wake.set()
        if self._loop is None:
            self._loop = asyncio.get_running_loop().create_task(self._run())
        return live

    def _forget(self, live: _Live) -> None:
        if self._live.pop(live.request.request_id, None) is None:
            return
        self.aborted.append(live.request.request_id)
        if live in self._running:
            self._running.remove(live)
        else:
            self._waiting.remove(live)
        self._count()

    async def _run(self) -> None:
        while not self._dead:
            if not self._live or self.stalled:
                self._wake.clear()
                await self._wake.wait()
                continue
            await asyncio.sleep(self.step_time)
            if not self.stalled and not self._dead:
                self._step()

    def _step(self) -> None:
        started = time.time()
        self._schedule()
        for live in list(self._running):
            self._advance(live)
        self._stats.steps += 1
        self._stats.last_step_time = time.time()
        self._stats.last_step_seconds = time.time() - started + self.step_time
        self._count()

    def _schedule(self) -> None:
        """Admit first come first served while sequences and blocks last."""
        while self._waiting:
            sequences = sum(len(live.made) for live in self._running)
            head = self._waiting[0]
            full = self._running and sequences + head.request.params.n > self.info.max_num_seqs
            if full or head.blocks(self._block_size) > self._stats.blocks_free:
                return
            self._waiting.popleft()
            head.queue_time = time.time() - head.arrival
            self._stats.prompt_tokens += len(head.request.prompt_token_ids)
            self._running.append(head)
            self._count()

    def _advance(self, live: _Live) -> None:
        for index in list(live.made):
            output = self._output(live, index)
            if output.finish_reason is not None:
                del live.made[index]
            live.outputs.put_nowait(output)
        if not live.made:
            self._running.remove(live)
            del self._live[live.request.request_id]

    def _output(self, live: _Live, index: int) -> EngineOutput:
        params, made = live.request.params, live.made[index]
        output = EngineOutput(request_id=live.request.request_id, index=index, queue_time=live.queue_time)
        if params.prompt_logprobs is not None and made == 0 and index == 0:
            rest = live.request.prompt_token_ids[1:]
            output.prompt_logprobs = [None, *(logprob_of(t, params.prompt_logprobs) for t in rest)]
        live.first = live.first or time.time()
        output.first_token_time = live.first
        if params.max_tokens == 0:
            output.finish_reason = FinishReason.LENGTH
            return output
        token = self._token(live, index, made)
        output.token_ids = [token]
        if params.logprobs is not None:
            output.logprobs = [logprob_of(token, params.logprobs)]
        live.made[index] = made + 1
        self._stats.generation_tokens += 1
        self._finish(live, index, token, output)
        return output

    def _token(self, live: _Live, index: int, made: int) -> int:
        script = live.scripts[index]
        if script is not None:
            return script[made] if made < len(script) else self.info.eos_token_ids[0]
        request = live.request
        allowed = request.params.allowed_token_ids or ALPHABET
        return token_at(request.prompt_token_ids, request.params.seed, index, made, allowed)

    def _finish(self, live: _Live, index: int, token: int, output: EngineOutput) -> None:
        params, made = live.request.params, live.made[index]
        stops = set(params.stop_token_ids)
        if not params.ignore_eos:
            stops.update(self.info.eos_token_ids)
        if token in stops and made > params.min_tokens:
            output.finish_reason, output.stop_token_id = FinishReason.STOP, token
        elif made >= (params.max_tokens or self.info.max_model_len):
            output.finish_reason = FinishReason.LENGTH

    def _count(self) -> None:
        used = sum(live.blocks(self._block_size) for live in self._running)
        self._stats.blocks_free = self._stats.blocks_total - used
        self._stats.running, self._stats.waiting = len(self._running), len(self._waiting)

    async def abort(self, request_id: str, index: int | None = None) -> None:
        live = self._live.get(request_id)
        if live is None:
            return
        if index is not None:
            live.made.pop(index, None)
        if index is not None and live.made:
            return
        self._forget(live)
        for left in live.made:
            live.outputs.put_nowait(
                EngineOutput(request_id=request_id, index=left, finish_reason=FinishReason.ABORT)
            )

    async def stats(self) -> EngineStats:
        if self._dead:
            raise EngineDeadError(self._dead)
        return self._stats

    def healthy(self) -> str:
        return self._dead

    def die(self, why: str = "the engine process ended with code -9") -> None:
        """As if the engine's process had been killed."""
        self._dead = why
        self._wake.set()
        for live in list(self._live.values()):
            live.outputs.put_nowait(EngineDeadError(why))

    def stall(self, stalled: bool = True) -> None:
        """Stop making steps, or go on."""
        self.stalled = stalled
        self._wake.set()

    async def close(self) -> None:
        self.die("the engine was closed")
        if self._loop is not None:
            await self._loop
