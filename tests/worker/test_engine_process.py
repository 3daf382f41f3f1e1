"""The engine in its own process: answers, refusals, aborts, and what its death looks like from outside."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from fd_core.engine.client import EngineDeadError
from fd_core.engine.config import EngineConfig
from fd_core.engine.process_client import ProcessEngine
from fd_core.engine.request import EngineOutput, EngineRequest, FinishReason, SamplingParams

Body = Callable[[ProcessEngine], Awaitable[None]]


def config(folder: Path, **options: object) -> EngineConfig:
    given = {"block_size": 8, "max_num_seqs": 8, "max_num_batched_tokens": 64, "seed": 1, **options}
    return EngineConfig(model=str(folder), load_format="dummy", **given)


def run(folder: Path, body: Body, scheduling: str = "auto", **options: float) -> None:
    async def main() -> None:
        engine = ProcessEngine(config(folder, async_scheduling=scheduling), **options)
        await engine.start()
        try:
            await body(engine)
        finally:
            await engine.close()

    asyncio.run(main())


def request(name: str, **params: object) -> EngineRequest:
    given = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True, **params}
    return EngineRequest(request_id=name, prompt_token_ids=[1, 2, 3], params=SamplingParams(**given))


async def tokens(stream: AsyncIterator[EngineOutput]) -> list[int]:
    return [token async for output in stream for token in output.token_ids]


@pytest.mark.parametrize("scheduling", ["off", "on"])
def test_answers_are_those_of_the_engine_in_this_process(
    tiny_folder: Path, build: Callable, scheduling: str
) -> None:
    engine = build().engine
    engine.add_request(request("local"))
    expected = []
    while engine.has_work:
        expected += [token for output in engine.step() for token in output.token_ids]

    async def body(remote: ProcessEngine) -> None:
        assert remote.info.vocab_size == 500
        many = await asyncio.gather(*(tokens(remote.generate(request(f"r{i}"))) for i in range(20)))
        assert many == [expected] * 20
        assert remote.healthy() == ""

    run(tiny_folder, body, scheduling)


@pytest.mark.parametrize("scheduling", ["off", "on"])
def test_refusals_and_aborts_leave_the_engine_empty(tiny_folder: Path, scheduling: str) -> None:
    async def body(engine: ProcessEngine) -> None:
        (refusal,) = [output async for output in engine.generate(request("bad", stop_token_ids=(9999,)))]
        assert refusal.refused
        assert "stop_token_ids" in refusal.error
        stream = engine.generate(request("long", max_tokens=200))
        await anext(stream)
        await stream.aclose()
        await engine.abort("unknown")
        await tokens(engine.generate(request("after")))
        await asyncio.sleep(1.2)
        stats = await engine.stats()
        assert stats.running == stats.waiting == 0
        assert stats.blocks_free + stats.blocks_cached == stats.blocks_total

    run(tiny_folder, body, scheduling)


def test_one_completion_of_several_can_be_stopped(tiny_folder: Path) -> None:
    async def body(engine: ProcessEngine) -> None:
        made = {0: 0, 1: 0}
        stream = engine.generate(request("r", n=2, max_tokens=240))
        async for output in stream:
            if not any(made.values()):
                await engine.abort("r", 0)
            made[output.index] += len(output.token_ids)
            if output.index == 1 and output.finish_reason:
                break
        await stream.aclose()
        assert made[1] == 240
        assert made[0] < 240

    run(tiny_folder, body)


def test_death_reaches_every_waiting_request_within_two_seconds(tiny_folder: Path) -> None:
    async def body(engine: ProcessEngine) -> None:
        os.kill(engine.pid, signal.SIGSTOP)  # so that no request can be over before the engine is
        waiting = [asyncio.create_task(tokens(engine.generate(request(f"r{i}")))) for i in range(4)]
        await asyncio.sleep(0.1)
        started = time.monotonic()
        os.kill(engine.pid, signal.SIGKILL)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert time.monotonic() - started < 2
        assert all(isinstance(result, EngineDeadError) for result in results)
        assert "status -9" in engine.healthy()
        with pytest.raises(EngineDeadError, match="status -9"):
            await tokens(engine.generate(request("late")))

    run(tiny_folder, body)


def test_a_frozen_process_is_noticed(tiny_folder: Path) -> None:
    async def body(engine: ProcessEngine) -> None:
        os.kill(engine.pid, signal.SIGSTOP)
        try:
            with pytest.raises(EngineDeadError, match="no sign of life"):
                await asyncio.wait_for(tokens(engine.generate(request("r"))), 10)
        finally:
            os.kill(engine.pid, signal.SIGKILL)

    run(tiny_folder, body, stall_seconds=2.0)


def test_a_model_that_cannot_load_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        engine = ProcessEngine(config(tmp_path))
        try:
            with pytest.raises(EngineDeadError, match=r"config\.json: no such file"):
                await engine.start()
        finally:
            await engine.close()

    asyncio.run(main())


def test_the_process_ends_with_its_parent(tiny_folder: Path) -> None:
    async def body(engine: ProcessEngine) -> None:
        process = engine._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.to_thread(process.wait, 10) == 3

    run(tiny_folder, body)


def test_priorities_and_finish_reasons_cross_the_border(tiny_folder: Path) -> None:
    async def body(engine: ProcessEngine) -> None:
        outputs = [output async for output in engine.generate(request("r", n=2, logprobs=1))]
        assert sorted({output.index for output in outputs}) == [0, 1]
        assert [o.finish_reason for o in outputs if o.finish_reason] == [FinishReason.LENGTH] * 2
        assert all(len(output.logprobs) == 1 for output in outputs)

    run(tiny_folder, body)
