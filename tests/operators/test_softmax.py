"""Argmax and softmax with temperature, on the oracle and on the kernels."""

from __future__ import annotations

import numpy as np
import pytest
from providers import PROVIDERS, run, same, target

from fd_core.api.tensor import from_numpy

everywhere = pytest.mark.parametrize("provider", PROVIDERS)


# -- argmax --------------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize(
    ("row", "want"),
    [
        ([1, 3, 3, 2], 1),
        ([np.nan, 2, np.nan, 5], 3),
        ([np.nan, np.nan], 0),
        ([np.nan, -np.inf, -np.inf], 1),
        ([5, 0, 0], 0),
        ([-np.inf, np.inf, np.inf], 1),
    ],
)
def test_argmax(provider: str, row: list[float], want: int) -> None:
    assert run(provider, "argmax", logits=np.array([row], np.float32))["out"].tolist() == [want]


@everywhere
@pytest.mark.parametrize("where", [0, 15, 63, 8191, 8192, 20000, 20010])
def test_argmax_finds_every_place(provider: str, where: int) -> None:
    logits = np.zeros((2, 20011), np.float32)
    logits[1, where] = 1e-20
    assert run(provider, "argmax", logits=logits)["out"].tolist() == [0, where]


# -- softmax -------------------------------------------------------------------------------------------


@everywhere
def test_softmax_divides_by_the_temperature(provider: str) -> None:
    logits = np.log(np.array([[1, 2, 4], [1, 2, 4]], np.float32))
    probs = run(provider, "temperature_softmax", logits=logits, temperature=np.array([1, 0.5], np.float32))
    np.testing.assert_allclose(
        probs["probs"], [[1 / 7, 2 / 7, 4 / 7], [1 / 21, 4 / 21, 16 / 21]], rtol=1e-6
    )


@everywhere
def test_softmax_of_temperature_zero_is_one_hot(provider: str) -> None:
    logits = np.array([[2, 7, 7, 1], [-np.inf, -np.inf, np.nan, -np.inf]], np.float32)
    probs = run(provider, "temperature_softmax", logits=logits, temperature=np.zeros(2, np.float32))[
        "probs"
    ]
    assert probs.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


def test_softmax_may_overwrite_its_logits() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 9000)).astype(np.float32)
    temperature = np.array([0, 1, 0.3], np.float32)
    want = run("fd-cpu", "temperature_softmax", logits=logits, temperature=temperature)["probs"]
    place = from_numpy(logits)
    target("fd-cpu", "temperature_softmax")(place, from_numpy(temperature), place)
    assert same(logits, want)
