"""Limits of a reasoning part, on the oracle and on the kernels. 999 ends thinking, 888 is a line break."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from providers import PROVIDERS, run, target

from fd_core.api.tensor import from_numpy

everywhere = pytest.mark.parametrize("provider", PROVIDERS)
V1, V2, GENERAL = (f"limit_thinking_content_length{suffix}" for suffix in ("_v1", "_v2", ""))
EOS = np.array([[2], [2]])


def common(token: int, limit: int, step: int, status: int, stopped: bool) -> dict[str, Any]:
    return {
        "next_tokens": np.array([[token]]),
        "max_think_lens": np.array([limit], np.int32),
        "step_idx": np.array([[step]]),
        "limit_think_status": np.array([status], np.int32),
        "stop_flags": np.array([stopped]),
    }


def v1(
    provider: str, token: int, limit: int, step: int, status: int, stopped: bool = False
) -> tuple[int, int, bool]:
    got = run(
        provider, V1, **common(token, limit, step, status, stopped), eos_token_ids=EOS, think_end_id=999
    )
    return int(got["next_tokens"][0, 0]), int(got["limit_think_status"][0]), bool(got["stop_flags"][0])


def v2(
    provider: str, token: int, limit: int, step: int, status: int, stopped: bool = False
) -> tuple[int, int]:
    given = common(token, limit, step, status, stopped)
    got = run(provider, V2, **given, think_end_id=999, line_break_id=888)
    return int(got["next_tokens"][0, 0]), int(got["limit_think_status"][0])


@everywhere
def test_v1(provider: str) -> None:
    assert v1(provider, 7, 5, 5, 0) == (999, 2, False)
    assert v1(provider, 7, 5, 4, 0) == (7, 0, False)
    assert v1(provider, 7, -1, 50, 0) == (7, 0, False)
    assert v1(provider, 999, 5, 1, 0) == (999, 2, False)
    assert v1(provider, 2, 5, 1, 0, stopped=True) == (999, 2, False)
    assert v1(provider, 7, 5, 9, 2) == (7, 2, False)
    assert v1(provider, 2, 5, 9, 2, stopped=True) == (2, 2, True)


@everywhere
def test_v2(provider: str) -> None:
    status, seen = 0, []
    for step in range(4, 10):
        token, status = v2(provider, 7, 5, step, status)
        seen.append((token, status))
    assert seen == [(7, 0), (888, 1), (999, 1), (888, 1), (888, 3), (7, 3)]
    assert v2(provider, 7, 5, 9, 2) == (7, 3)
    assert v2(provider, 999, 5, 1, 0) == (999, 3)
    assert v2(provider, 7, -1, 5, 0) == (7, 0)


def stream(
    provider: str,
    natural: list[int],
    think: int,
    reply: int,
    inject: tuple[int, ...] = (),
    decode: bool = False,
) -> list[int]:
    """Tokens that come out when the model would say `natural`."""
    status, limit, out = np.zeros(1, np.int32), np.array([reply], np.int32), []
    for step, token in enumerate(natural):
        got = run(
            provider,
            GENERAL,
            next_tokens=np.array([[token]]),
            max_think_lens=np.array([think], np.int32),
            max_reply_lens=limit,
            step_idx=np.array([[step]]),
            limit_status=status,
            stop_flags=np.array([False]),
            eos_token_ids=EOS,
            inject_token_ids=np.array(inject, np.int64),
            think_end_id=999,
            splitwise_role_is_decode=decode,
        )
        status, limit = got["limit_status"], got["max_reply_lens"]
        out.append(int(got["next_tokens"][0, 0]))
    return out


@everywhere
def test_general_injects_at_the_limit(provider: str) -> None:
    assert stream(provider, [7] * 6, 2, -1, (11, 999, 12)) == [7, 7, 11, 999, 12, 7]
    assert stream(provider, [7, 2, 7, 7, 7], 4, -1, (11, 999)) == [7, 11, 999, 7, 7]
    assert stream(provider, [7] * 4, 0, -1, (11, 999)) == [11, 999, 7, 7]
    assert stream(provider, [7] * 3, 0, -1, (11, 999), decode=True) == [999, 7, 7]


@everywhere
def test_general_limits_the_reply(provider: str) -> None:
    assert stream(provider, [7] * 6, 0, 3, (11, 999)) == [11, 999, 7, 7, 7, 2]
    assert stream(provider, [999, *[7] * 7], 5, 3) == [999, 7, 7, 7, 7, 7, 2, 2]
    assert stream(provider, [7] * 5, -1, 2) == [7] * 5


@pytest.mark.parametrize(
    ("name", "arg", "value", "kind", "message"),
    [
        (V1, "max_think_lens", np.zeros(2, np.int32), ValueError, "want 1 elements"),
        (V1, "limit_think_status", np.zeros(1, np.int64), TypeError, "want dtype int32"),
        (V2, "next_tokens", np.zeros((1, 1), np.int32), TypeError, "want dtype int64"),
        (V2, "stop_flags", np.zeros(1, np.uint8), TypeError, "want dtype bool"),
        (GENERAL, "eos_token_ids", np.zeros(0, np.int64), ValueError, "at least one id"),
    ],
)
def test_bad_input_is_refused(name: str, arg: str, value: Any, kind: type[Exception], message: str) -> None:
    base = common(7, 0, 0, 0, False)
    values = {
        V1: {**base, "eos_token_ids": EOS, "think_end_id": 999},
        V2: {**base, "think_end_id": 999, "line_break_id": 888},
        GENERAL: {
            "next_tokens": base["next_tokens"],
            "max_think_lens": base["max_think_lens"],
            "max_reply_lens": np.zeros(1, np.int32),
            "step_idx": base["step_idx"],
            "limit_status": np.zeros(1, np.int32),
            "stop_flags": base["stop_flags"],
            "eos_token_ids": EOS,
            "inject_token_ids": np.zeros(0, np.int64),
            "think_end_id": 999,
            "splitwise_role_is_decode": False,
        },
    }[name]
    values[arg] = value
    with pytest.raises(kind, match=rf"{name}\.{arg}: .*{message}"):
        target("fd-cpu", name)(
            *(from_numpy(v) if isinstance(v, np.ndarray) else v for v in values.values())
        )
    assert values["next_tokens"].ravel().tolist() == ([0] if arg == "next_tokens" else [7])
