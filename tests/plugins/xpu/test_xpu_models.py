"""Every model family on fd-xpu's stand-in, against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fd_core.host.session import Session
from fd_core.testkit.harness import Harness, build

pytest.importorskip("torch", reason="torch makes the reference models")
from tests.models.tiny_models import FAMILIES, VOCAB, make, reference_logits, save

pytestmark = pytest.mark.reference

PROMPT = [int(t) for t in np.random.default_rng(7).integers(0, VOCAB, 41)]
OTHER = [int(t) for t in np.random.default_rng(8).integers(0, VOCAB, 23)]
#: Of the logits' scale: float32 sums of at most 96 terms over three layers, in any order.
BOUND = 5e-5


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_are_those_of_transformers(session: Session, family: str, tmp_path: Path) -> None:
    """In one step and in chunks beside another text. Here, where sums are in float64, the two agree bit for
    bit: a row does not depend on what else is in its step."""
    model = make(family)
    harness = Harness(build(save(model, tmp_path), session))
    want = reference_logits(model, PROMPT)
    got = harness.logits("whole", PROMPT)
    assert np.abs(got - want).max() <= BOUND * max(1.0, float(want.std()))
    parts = []
    for number, (start, stop) in enumerate(((0, 9), (9, 10), (10, 40), (40, 41))):
        beside = OTHER[number * 5 : number * 5 + 5]
        parts.append(harness.step([("other", beside), ("cut", PROMPT[start:stop])])[1])
    assert np.concatenate(parts).tobytes() == got.tobytes()
