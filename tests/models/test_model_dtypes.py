"""16-bit weights: our arithmetic against exact arithmetic on the same rounded weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import PARTS, Harness, Parts, build
from test_model_logits import PROMPT, assert_logits
from tiny_models import make, narrowed, reference_logits, save

pytestmark = pytest.mark.reference

#: Largest relative error of one rounding.
EPSILON = {"bfloat16": 2.0**-9, "float16": 2.0**-12}


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


@pytest.fixture(scope="module", params=list(PARTS))
def parts(request: pytest.FixtureRequest) -> Parts:
    return PARTS[request.param]()


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reference(kind: str) -> Any:
    return make("qwen3", kind)


@pytest.fixture(scope="module")
def folder(reference: Any, kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(reference, tmp_path_factory.mktemp("half"), kind)


def test_16_bit_weights_widen_exactly(folder: Path, parts: Parts, reference: Any) -> None:
    """Activations are float32 here, so with a float32 cache only the weights' rounding remains, and the
    reference has the same weights: the float32 bound holds."""
    model = build(folder, parts, cache="float32")
    assert str(model.context.dtype) != "float32"
    want = reference_logits(reference, PROMPT)
    assert_logits(Harness(model).logits("p", PROMPT), want, 1e-4)


def test_16_bit_experts_widen_exactly(parts: Parts, kind: str, tmp_path: Path) -> None:
    reference = make("qwen3_moe", kind)
    model = build(save(reference, tmp_path, kind), parts, cache="float32")
    assert_logits(Harness(model).logits("p", PROMPT), reference_logits(reference, PROMPT), 1e-4)


def test_a_16_bit_cache_stays_within_its_rounding(
    folder: Path, parts: Parts, reference: Any, kind: str
) -> None:
    """Keys and values are rounded once each (2^-9 relative for bfloat16, 2^-12 for float16). Each of the
    L = 3 layers turns that into at most a few times as much, relative, in its attention output (logits
    of order 3, so an error of 3 * 2^-9 in the exponent), added to a residual of the same scale; the
    head's sum of 64 such terms grows as their norm. 2 * L * 4 * 2^-9 = 0.047 is the bound."""
    want = reference_logits(reference, PROMPT)
    got = Harness(build(folder, parts)).logits("p", PROMPT)
    assert_logits(got, want, 2 * 3 * 4 * EPSILON[kind])


def test_weights_may_be_narrowed_at_load(folder: Path, parts: Parts, kind: str) -> None:
    """Asking for another type gives what a checkpoint of that type gives, bit for bit."""
    wide = build(folder, parts, weights="float32", cache="float32")
    assert str(wide.context.dtype) == "float32"
    as_stored = build(folder, parts, cache="float32")
    got, want = (Harness(m).logits("p", PROMPT) for m in (wide, as_stored))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def test_16_bit_activations_stay_within_their_rounding(
    folder: Path, parts: Parts, reference: Any, kind: str
) -> None:
    """On a device without a preference, activations have the weights' type, logits stay float32.

    About 12 roundings per layer and token (norms, projections, rotation, mixing, gate, sums), 36 in all,
    each of root-mean-square e / sqrt(3) relative to its row, independent: 6 e / sqrt(3) = 3.5 e. Softmax
    and gates pass a row's error on with a factor of up to 3: 10 e. The worst of 5,000 values lies within
    5 standard deviations. Beside that, we round no more often than transformers does.
    """
    device = dataclasses.replace(parts.device, activation_dtype=None)
    model = build(folder, dataclasses.replace(parts, device=device))
    assert str(model.context.activation_dtype) == kind
    got, want = Harness(model).logits("p", PROMPT), reference_logits(reference, PROMPT)
    theirs = reference_logits(narrowed(reference, kind), PROMPT)
    error, epsilon = rms(got - want) / want.std(), EPSILON[kind]
    assert epsilon / 10 < error <= 10 * epsilon
    assert np.abs(got - want).max() / want.std() <= 5 * 10 * epsilon
    assert error <= 1.25 * rms(theirs - want) / want.std()
