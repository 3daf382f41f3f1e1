"""What the conformance kit's cases do not reach in the sampling kernels: vocabularies of real size, rows
shared by clusters, candidates that do not fit in shared memory, long lists of log-probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("fd_cuda")
from fd_cuda import library

from fd_core.host.session import Session
from fd_core.ops.catalogue import find
from fd_core.ops.sampling._philox import philox_bits
from fd_core.ops.sampling._truncate import sample
from tests.cuda.gpu import gpu_session

pytestmark = pytest.mark.device("cuda")
Array = np.ndarray[Any, Any]
Values = dict[str, Any]


@pytest.fixture(scope="module")
def session() -> Session:
    return gpu_session("sample_from_logits")


def call(session: Session, name: str, outs: list[Array], *inputs: Any) -> list[Array]:
    """The results of an export; `outs` say their shapes."""
    put = session.platform.from_host
    placed = [put(v) if isinstance(v, np.ndarray) else v for v in inputs]
    results = [put(out) for out in outs]
    library.function(name)(*placed, *results)
    return [session.platform.to_host(out) for out in results]


def filters(rng: np.random.Generator, rows: int) -> Values:
    """Filters of every kind: off, tight, wide, beyond what shared memory holds."""
    return {
        "top_k": rng.choice(np.array([0, 1, 50, 200, 900, 3000, 40000], np.int64), rows),
        "top_p": rng.choice(np.array([0.1, 0.9, 0.999, 1], np.float32), rows),
        "min_p": rng.choice(np.array([0, 0, 0.02, 0.5], np.float32), rows),
        "seed": rng.integers(0, 2**63 - 1, rows),
        "position": rng.integers(0, 2**40, rows),
    }


def drawn(probs: Array, row: int, f: Values) -> int:
    bits = philox_bits(int(f["seed"][row]), int(f["position"][row]))
    limits = int(f["top_k"][row]), f["top_p"][row], f["min_p"][row]
    return sample(probs[row], *limits, True, bits)


@pytest.mark.parametrize("vocab", [151936, 128256, 50257, 5000])
@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_fused_draw_is_the_oracle_of_the_devices_probabilities(
    session: Session, rows: int, scale: float, vocab: int
) -> None:
    rng = np.random.default_rng(rows + vocab)
    logits = (scale * rng.standard_normal((rows, vocab))).astype(np.float32)
    if scale == 3:
        logits = np.round(logits)  # ties
    temperature = rng.uniform(0.3, 1.5, rows).astype(np.float32)
    f = filters(rng, rows)
    ids = [np.full(rows, -1)]
    (probs,) = call(session, "temperature_softmax", [np.empty_like(logits)], logits, temperature)
    (two,) = call(session, "sample_top_k_top_p", ids, probs, *f.values())
    (one,) = call(session, "sample_from_logits", ids, logits, temperature, *f.values())
    assert one.tolist() == two.tolist()
    checked = range(min(rows, 4))
    assert [int(one[r]) for r in checked] == [drawn(probs, r, f) for r in checked]


def test_a_row_draws_the_same_alone_and_in_any_batch(session: Session) -> None:
    rng = np.random.default_rng(7)
    logits = (3 * rng.standard_normal((70, 151936))).astype(np.float32)
    temperature = rng.uniform(0.3, 1.5, 70).astype(np.float32)
    f = filters(rng, 70)
    whole, parts = [], {}
    for size in (70, 9, 1):
        for first in range(0, 18 if size < 70 else 1, size):
            rows = slice(first, first + size)
            values = [logits[rows], temperature[rows], *(v[rows] for v in f.values())]
            (got,) = call(session, "sample_from_logits", [np.full(size, -1)], *values)
            if size == 70:
                whole = got.tolist()
            else:
                parts[first, size] = got.tolist()
    assert all(got == whole[first : first + size] for (first, size), got in parts.items())


@pytest.mark.parametrize("k", [20, 700, 3000])
@pytest.mark.parametrize("ties", [False, True])
def test_long_lists_of_log_probabilities(session: Session, ties: bool, k: int) -> None:
    """Lists that no shared memory holds come in rounds; equal logits by id."""
    definition, rng = find("top_logprobs"), np.random.default_rng(3)
    logits = (4 * rng.standard_normal((2, 30011))).astype(np.float32)
    logits = np.round(logits) if ties else logits
    tokens = rng.integers(0, 30011, 2)
    outs = [np.zeros(2, np.float32), np.zeros(2, np.int64)]
    outs += [np.zeros((2, k), np.int64), np.zeros((2, k), np.float32)]
    got = call(session, "top_logprobs", outs, logits, tokens, k)
    definition.oracle(logits, tokens, k, *outs)
    rtol, atol = 1e-6, 1.6e-5  # the op's own
    assert np.array_equal(got[1], outs[1])
    assert np.array_equal(got[2], outs[2])
    np.testing.assert_allclose(got[0], outs[0], rtol, atol)
    np.testing.assert_allclose(got[3], outs[3], rtol, atol)


def test_top_k_renorm_of_a_wide_row(session: Session) -> None:
    rng = np.random.default_rng(5)
    probs = rng.random((4, 151936)).astype(np.float32) ** 8
    probs /= probs.sum(-1, keepdims=True)
    top_k = np.array([1, 300, 5000, 100000])
    (got,) = call(session, "top_k_renorm_probs", [np.empty_like(probs)], probs, top_k)
    want = np.empty_like(probs)
    find("top_k_renorm_probs").oracle(probs, top_k, want)
    np.testing.assert_allclose(got, want, 2.5e-7)
