"""sample_from_logits gives the token of temperature_softmax and sample_top_k_top_p."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run

everywhere = pytest.mark.parametrize("provider", PROVIDERS)


@everywhere
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32), vocab=st.sampled_from([1, 7, 300, 5000]), top_k=st.integers(0, 60),
    top_p=st.sampled_from([0.0, 0.2, 0.9, 1.0]), min_p=st.sampled_from([0.0, 0.05, 1.0]),
    temperature=st.sampled_from([0.0, 1e-40, 0.2, 1.0, 3.0]), holes=st.booleans(),
)  # fmt: skip
def test_one_op_draws_what_two_draw(
    provider: str, seed: int, vocab: int, top_k: int, top_p: float, min_p: float, temperature: float,
    holes: bool,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    logits = (4 * rng.standard_normal((3, vocab))).astype(np.float32)
    if holes:
        logits[rng.random(logits.shape) < 0.5] = rng.choice(np.array([np.nan, -np.inf], np.float32))
    hot = np.full(3, temperature, np.float32)
    rest = {
        "top_k": np.full(3, top_k), "top_p": np.full(3, top_p, np.float32),
        "min_p": np.full(3, min_p, np.float32), "seed": np.arange(3), "position": np.full(3, seed),
    }  # fmt: skip
    probs = run(provider, "temperature_softmax", logits=logits, temperature=hot)["probs"]
    want = run(provider, "sample_top_k_top_p", probs=probs, **rest)["out"]
    got = run(provider, "sample_from_logits", logits=logits, temperature=hot, **rest)["out"]
    assert got.tolist() == want.tolist()
