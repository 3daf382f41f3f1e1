"""Wrong data in well-formed tensors: only a device that works asynchronously may take the call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fd_core.ops.checks import DataError
from fd_core.testkit import trial as trials

ASYNCHRONOUS, IMMEDIATE = frozenset({"asynchronous"}), frozenset({"host_memory"})


def judged(monkeypatch: pytest.MonkeyPatch, refusal: Exception, features: frozenset[str]) -> None:
    """What the kit makes of a kernel that takes a call which the oracle refuses with `refusal`."""

    def oracle(ids: Any) -> None:
        raise refusal

    device = SimpleNamespace(features=features)
    trial: Any = SimpleNamespace(
        definition=SimpleNamespace(oracle=oracle), session=SimpleNamespace(device=device)
    )
    monkeypatch.setattr(trials, "or_refuse", lambda trial, values, place: dict(values))
    trials.right_or_refused(trial, {"ids": np.array([9])}, "ids")


def test_asynchronous_devices_cannot_look_at_data(monkeypatch: pytest.MonkeyPatch) -> None:
    judged(monkeypatch, DataError("ids: want below 4, have 9"), ASYNCHRONOUS)


@pytest.mark.parametrize(
    ("refusal", "features"),
    [
        (DataError("ids: want below 4, have 9"), IMMEDIATE),
        (ValueError("ids: want rank 1, have 2"), ASYNCHRONOUS),
        (IndexError("index 9 is out of bounds"), ASYNCHRONOUS),
    ],
    ids=["data on the host", "shape", "an oracle's own failure"],
)
def test_everything_else_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, refusal: Exception, features: frozenset[str]
) -> None:
    with pytest.raises(trials.CheckFailed, match="took ids, and the result is not the oracle's"):
        judged(monkeypatch, refusal, features)
