"""Every family against transformers on random weights: logits, greedy text, and equal bits however a
sequence is cut, batched or placed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import PARTS, Harness, Parts, build, oracle_parts
from tiny_models import FAMILIES, VOCAB, make, reference_greedy, reference_logits, save

from fd_core.api.tensor import from_numpy
from fd_core.host.freeze import freeze
from fd_core.layers.attention_backend import PagedAttention
from fd_core.ops.catalogue import catalogue

pytestmark = pytest.mark.reference

PROMPT = [int(t) for t in np.random.default_rng(7).integers(0, VOCAB, 41)]
OTHER = [int(t) for t in np.random.default_rng(8).integers(0, VOCAB, 23)]


@pytest.fixture(scope="session", params=list(PARTS))
def parts(request: pytest.FixtureRequest) -> Parts:
    return PARTS[request.param]()


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def reference(family: str) -> Any:
    return make(family)


@pytest.fixture(scope="session")
def folder(family: str, reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small shards, so that the index is used."""
    return save(reference, tmp_path_factory.mktemp(family), max_shard_size="100KB")


@pytest.fixture(scope="session")
def greedy(reference: Any) -> list[int]:
    return reference_greedy(reference, PROMPT, 64)


@pytest.fixture
def harness(folder: Path, parts: Parts) -> Harness:
    return Harness(build(folder, parts))


def assert_logits(got: Any, want: Any, bound: float) -> None:
    """`bound` relative to the logits' scale (their standard deviation, at least 1)."""
    assert got.dtype == np.float32
    assert got.shape == want.shape
    scale = max(1.0, float(want.std()))
    assert want.std() > 0.2, "the reference's logits are too flat to test anything"
    error = float(np.abs(got - want).max()) / scale
    assert error <= bound, f"max error {error:.3g} of the logits' scale {scale:.3g}, want <= {bound:.3g}"


def test_fp32_logits_equal_transformers(harness: Harness, reference: Any) -> None:
    want = reference_logits(reference, PROMPT)
    assert_logits(harness.logits("prompt", PROMPT), want, 1e-4)


def test_one_call_before_attention_equals_its_parts(folder: Path) -> None:
    """Norms, rotation and cache write as one op, and by the ops that a device without it has."""
    whole = oracle_parts()
    rest = {name: op for name, op in catalogue().items() if name != "rope_and_cache"}
    parts = replace(whole, ops=freeze(rest, [], whole.device, oracle_is_native=True))
    assert whole.ops.provides("rope_and_cache")
    assert not parts.ops.provides("rope_and_cache")
    got, want = (Harness(build(folder, p)).logits("prompt", PROMPT, chunks=[9, 1]) for p in (whole, parts))
    assert got.tobytes() == want.tobytes()
    assert whole.ops.table["rope_and_cache"].calls
    assert not whole.ops.table["fused_rotary_position_encoding"].calls


def test_a_backend_may_take_packed_projections(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal bits where it takes decoding steps and refuses others; it alone rotates what it takes."""
    taken: list[int] = []

    def run_packed(
        self: PagedAttention, plan: Any, qkv: Any, positions: Any, rotary: Any, cache: Any, out: Any
    ) -> bool:
        if plan.max_query_len > 1:
            return False
        to, spec = self.destination(plan, cache), self.spec
        assert to is not None
        norms = (rotary.q_norm_weight, rotary.k_norm_weight, rotary.eps)
        write = (to.key, to.value, to.slot_mapping)
        self.ops.rope_and_cache(qkv, positions, rotary.cos_sin_cache, *norms, *write, rotary.is_neox)
        q = qkv.numpy()[:, : spec.num_heads * spec.head_dim].reshape(out.shape)
        self.attend(plan, from_numpy(np.ascontiguousarray(q)), cache, out)
        taken.append(plan.num_tokens)
        return True

    parts = oracle_parts()
    want = Harness(build(folder, parts)).greedy("text", PROMPT, 8)
    before = parts.ops.table["rope_and_cache"].calls
    monkeypatch.setattr(PagedAttention, "run_packed", run_packed)
    model = build(folder, parts)
    assert Harness(model).greedy("text", PROMPT, 8) == want
    assert len(taken) == 7 * len(model.blocks)
    assert set(taken) == {1}
    assert parts.ops.table["rope_and_cache"].calls == 2 * before


def test_greedy_text_equals_transformers(harness: Harness, greedy: list[int]) -> None:
    assert harness.greedy("text", PROMPT, 64) == greedy


def test_rows_do_not_depend_on_chunks_or_neighbours(harness: Harness, parts: Parts) -> None:
    """Bitwise on compiled kernels; NumPy's matrix products (the oracles) order sums by shape."""
    whole = harness.logits("whole", PROMPT)
    chunked = harness.logits("chunked", PROMPT, chunks=[7, 1, 16, 5])
    harness.step([("mixed", PROMPT[:9]), ("other", OTHER)])
    tail = harness.step([("other", [1]), ("mixed", PROMPT[9:40]), ("third", OTHER)])[1]
    last = harness.step([("other", [2]), ("third", [3]), ("mixed", PROMPT[40:])])[2]
    for name, got in (("chunked", chunked), ("batched", np.concatenate([whole[:9], tail, last]))):
        if parts.name == "oracle":
            np.testing.assert_allclose(got, whole, rtol=0, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(got, whole, err_msg=name)


def test_forward_makes_no_device_memory(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    platform = type(harness.model.context.platform)

    def refuse(self: Any, spec: Any) -> Any:
        raise AssertionError(f"a step allocated {spec}")

    monkeypatch.setattr(platform, "empty", refuse)
    harness.step([("a", PROMPT)])
    harness.step([("a", [1]), ("b", OTHER)])
