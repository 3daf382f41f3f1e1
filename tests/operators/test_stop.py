"""Stop conditions after sampling, on the oracle and on the kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from providers import PROVIDERS, run, same, target

from fd_core.api.tensor import from_numpy

NAME = "set_stop_value_multi_ends"
EOS = 2
everywhere = pytest.mark.parametrize("provider", PROVIDERS)


def inputs(tokens: list[int], **given: Any) -> dict[str, Any]:
    """Running slots far from their limits, nothing to stop them but EOS."""
    n = len(tokens)
    column = lambda value, kind=np.int64: np.full((n, 1), value, kind)  # noqa: E731
    values: dict[str, Any] = {
        "topk_ids": np.array(tokens).reshape(n, 1),
        "stop_flags": column(False, np.bool_),
        "seq_lens": column(1, np.int32),
        "end_ids": np.array([EOS, 4]),
        "next_tokens": column(77),
        "pre_ids": np.zeros((n, 32), np.int64),
        "step_idx": column(10),
        "stop_seqs": np.zeros((n, 5, 8), np.int64),
        "stop_seqs_len": np.zeros((n, 5), np.int32),
        "stop_token_ids": np.tile(np.array([999, 888, 777]), (n, 1)),
        "stop_token_ids_len": np.zeros(n, np.int32),
        "min_tokens": column(0),
        "max_tokens": column(100),
        "beam_search": False,
    }
    for name, value in given.items():
        values[name] = (
            np.asarray(value, values[name].dtype).reshape(values[name].shape)
            if name != "beam_search"
            else value
        )
    return values


def step(provider: str, tokens: list[int], **given: Any) -> list[tuple[int, bool, int]]:
    """(token, stopped, next) per slot."""
    got = run(provider, NAME, **inputs(tokens, **given))
    columns = (got[k].ravel().tolist() for k in ("topk_ids", "stop_flags", "next_tokens"))
    return list(zip(*columns, strict=True))


@everywhere
def test_end_ids(provider: str) -> None:
    assert step(provider, [EOS, 4, 7]) == [(EOS, True, EOS), (EOS, True, EOS), (7, False, 7)]
    assert step(provider, [4], beam_search=True) == [(4, False, 4)]


@everywhere
def test_stopped_slots(provider: str) -> None:
    got = step(provider, [7, 7], stop_flags=[True, True], seq_lens=[0, 1])
    assert got == [(-1, True, 77), (EOS, True, EOS)]


@everywhere
def test_minimum_and_maximum(provider: str) -> None:
    assert step(provider, [EOS], step_idx=[5], min_tokens=[10]) == [(EOS, False, EOS)]
    assert step(provider, [9], step_idx=[50], max_tokens=[50]) == [(EOS, True, EOS)]
    assert step(provider, [9], step_idx=[10], min_tokens=[5]) == [(9, False, 9)]


@everywhere
def test_stop_token_ids(provider: str) -> None:
    got = step(provider, [888, 888, 777, 5], stop_token_ids_len=[3, 1, 9, 3])
    assert got == [(EOS, True, EOS), (888, False, 888), (EOS, True, EOS), (5, False, 5)]
    assert step(provider, [888], stop_token_ids_len=[3], step_idx=[3], min_tokens=[4]) == [
        (888, False, 888)
    ]


@everywhere
def test_stop_sequences(provider: str) -> None:
    history = np.zeros((2, 32), np.int64)
    history[:, :10] = [21, 22, 23, 24, 25, 26, 27, 28, 8038, 61502]
    sequences = np.zeros((2, 5, 8), np.int64)
    sequences[:, 0, :2] = [8038, 61502]
    lengths = np.zeros((2, 5), np.int32)
    lengths[0, 0] = 2
    lengths[:, 4] = 10  # longer than LEN: ignored
    given = {"pre_ids": history, "stop_seqs": sequences, "stop_seqs_len": lengths}
    assert step(provider, [61502, 61502], **given) == [(EOS, True, EOS), (61502, False, 61502)]
    assert step(provider, [61502, 1], **given, step_idx=[9, 9])[0] == (61502, False, 61502)
    assert step(provider, [61502, 1], **given, min_tokens=[11, 0])[0] == (61502, False, 61502)
    assert step(provider, [1, 1], **given, step_idx=[1, 33]) == [(1, False, 1), (1, False, 1)]


@everywhere
def test_prefill_node_stops_everything(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFILL_NODE_ONE_STEP_STOP", "1")
    assert step(provider, [7, 7], seq_lens=[1, 0]) == [(7, True, 7), (-1, True, -1)]
    monkeypatch.setenv("PREFILL_NODE_ONE_STEP_STOP", "0")
    assert step(provider, [7]) == [(7, False, 7)]


BAD = [
    ("topk_ids", np.zeros((2, 1), np.int32), TypeError, "want dtype int64"),
    ("topk_ids", np.zeros((3, 1), np.int64), ValueError, "want at most 2 rows"),
    ("stop_flags", np.zeros((2, 1), np.uint8), TypeError, "want dtype bool"),
    ("seq_lens", np.zeros(1, np.int32), ValueError, "want at least 2 elements"),
    ("end_ids", np.zeros(0, np.int64), ValueError, "at least one id"),
    ("stop_seqs", np.zeros((2, 5), np.int64), ValueError, "want rank 3"),
    ("stop_seqs_len", np.zeros((2, 4), np.int32), ValueError, "want size 5"),
    ("max_tokens", np.zeros(3, np.int64), ValueError, "want 2 elements"),
]


@pytest.mark.parametrize(("arg", "value", "kind", "message"), BAD)
def test_bad_input_is_refused_before_anything_is_written(
    arg: str, value: Any, kind: type[Exception], message: str
) -> None:
    values = {**inputs([EOS, 5]), arg: value}
    before = {k: v.copy() for k, v in values.items() if isinstance(v, np.ndarray)}
    with pytest.raises(kind, match=rf"{NAME}\.{arg}: .*{message}"):
        target("fd-cpu", NAME)(
            *(from_numpy(v) if isinstance(v, np.ndarray) else v for v in values.values())
        )
    assert all(same(values[k], v) for k, v in before.items())
