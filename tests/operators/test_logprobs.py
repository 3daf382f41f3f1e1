"""Log-probabilities, ranks and alternatives, on the oracle and on the kernel."""

from __future__ import annotations

import numpy as np
import pytest
from providers import PROVIDERS, run

everywhere = pytest.mark.parametrize("provider", PROVIDERS)


@everywhere
def test_top_logprobs_ranks_and_ties(provider: str) -> None:
    logits = np.log(np.array([[0.1, 0.4, 0.1, 0.4]], np.float32))
    got = run(provider, "top_logprobs", logits=logits, token_ids=np.array([2]), k=3)
    assert got["rank"].tolist() == [4]
    assert got["ids"].tolist() == [[1, 3, 0]]
    np.testing.assert_allclose(got["logprobs"], np.log([[0.4, 0.4, 0.1]]), rtol=1e-6)
    np.testing.assert_allclose(got["token_logprob"], np.log([0.1]), rtol=1e-6)


@everywhere
def test_top_logprobs_of_masked_rows_are_finite(provider: str) -> None:
    logits = np.array([[-np.inf, 0, np.nan], [-np.inf, -np.inf, -np.inf]], np.float32)
    got = run(provider, "top_logprobs", logits=logits, token_ids=np.array([0, 1]), k=2)
    assert np.all(np.isfinite(got["token_logprob"]))
    assert got["ids"].tolist() == [[1, 0], [0, 1]]
    assert got["rank"].tolist() == [3, 3]
    assert got["logprobs"][0, 0] == 0


@everywhere
def test_top_logprobs_against_torch(provider: str) -> None:
    torch = pytest.importorskip("torch")
    logits = (4 * np.random.default_rng(2).standard_normal((4, 3001))).astype(np.float32)
    got = run(provider, "top_logprobs", logits=logits, token_ids=np.array([0, 5, 3000, 77]), k=20)
    want = torch.log_softmax(torch.from_numpy(logits), -1)
    values, ids = want.topk(20, -1)
    assert got["ids"].tolist() == ids.tolist()
    np.testing.assert_allclose(got["logprobs"], values.numpy(), atol=5e-6)
