"""Attention backends and quantisation methods of the session on every library's tensors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from guests import GUESTS, Guest, on_host

from fd_core.api import dtype as dt
from fd_core.api.attention import AttentionBatch, AttentionSpec
from fd_core.api.quant import LinearSpec
from fd_core.host.errors import UnsupportedOpError
from fd_core.host.session import current_session
from fd_core.ops.methods import GuestAttention, GuestQuant

RNG = np.random.default_rng(2)


@pytest.fixture(params=GUESTS[:3], ids=lambda guest: guest.name)
def guest(request: pytest.FixtureRequest) -> Guest:
    request.param.load()
    return request.param  # type: ignore[no-any-return]


def back(value: Any) -> np.ndarray[Any, Any]:
    return on_host(current_session(), value)


class TestAttention:
    """Three tokens in one step, then one more: the last row sees all four."""

    SPEC = AttentionSpec(2, 1, 8, 8**-0.5, dt.float32, dt.float32, 4)

    def batch(self, guest: Guest, queries: int, keys: int) -> AttentionBatch:
        lists = (np.array([0, queries], np.int32), np.array([keys], np.int32), np.array([[2, 0]], np.int32))
        slots = np.arange(keys - queries, keys, dtype=np.int64) + 2 * 4
        tensors = (guest.tensor(a) for a in (*lists, slots))
        return AttentionBatch(queries, 1, *tensors, queries, keys)

    def test_rows_of_two_steps(self, guest: Guest) -> None:
        q, k, v = (RNG.standard_normal((4, h, 8)).astype(np.float32) for h in (2, 1, 1))
        attention = GuestAttention.select(self.SPEC)
        pools = attention.cache(guest.tensor(q), 3)
        assert type(pools[0]) is type(guest.tensor(q))
        parts = []
        for start, stop in ((0, 3), (3, 4)):
            plan = attention.plan(self.batch(guest, stop - start, stop))
            rows = [guest.tensor(a[start:stop]) for a in (q, k, v)]
            parts.append(attention.run(plan, *rows, pools))
        got = np.concatenate([back(part) for part in parts])
        want = np.empty_like(q)
        for i in range(4):
            for head in range(2):
                p = np.exp(k[: i + 1, 0] @ q[i, head] * self.SPEC.scale)
                want[i, head] = p @ v[: i + 1, 0] / p.sum()
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)

    def test_given_output_is_returned_itself(self, guest: Guest) -> None:
        q, k, v = (guest.tensor(RNG.standard_normal((1, h, 8)).astype(np.float32)) for h in (2, 1, 1))
        attention = GuestAttention.select(self.SPEC)
        out, pools = guest.tensor(np.zeros((1, 2, 8), np.float32)), attention.cache(q, 3)
        plan = attention.plan(self.batch(guest, 1, 1))
        assert attention.run(plan, q, k, v, pools, out) is out
        np.testing.assert_allclose(back(out), np.repeat(back(v), 2, 1), rtol=1e-6)

    def test_what_is_no_tensor_is_named(self, guest: Guest) -> None:
        attention = GuestAttention.select(self.SPEC)
        q = guest.tensor(np.zeros((1, 2, 8), np.float32))
        with pytest.raises(TypeError, match=r"cache: want a tensor .*have list"):
            attention.run(None, q, q, q, ([1.0], [2.0]))


class TestQuantMethods:
    X = RNG.standard_normal((2, 3, 64)).astype(np.float32)
    W = RNG.standard_normal((32, 64)).astype(np.float32)
    B = RNG.standard_normal(32).astype(np.float32)
    SPEC = LinearSpec(64, 32, True, dt.float32, dt.float32)

    @pytest.mark.parametrize("name", sorted(current_session().quant_methods))
    def test_every_method(self, guest: Guest, name: str) -> None:
        """Within the methods' own step: 8 bits of a row's largest weight, 4 bits of a group's."""
        method = GuestQuant.named(name)
        assert set(method.create_weights(self.SPEC)) == {"weight"}
        verdict = type(method.method).supports(self.SPEC, current_session().device)
        if not verdict.ok:
            with pytest.raises(UnsupportedOpError, match=re.escape(str(verdict))):
                method.process_weights(self.SPEC, {"weight": guest.tensor(self.W)})
            pytest.skip(str(verdict))
        packed = method.process_weights(self.SPEC, {"weight": guest.tensor(self.W)})
        x, bias = guest.tensor(self.X), guest.tensor(self.B)
        got = method.apply(x, packed, 32, bias)
        assert type(got) is type(x)
        assert list(got.shape) == [2, 3, 32]
        want = self.X @ self.W.T + self.B
        step = np.abs(self.W).max() / (7 if "4" in name else 127)
        error = np.abs(back(got) - want).max()
        assert error <= (1e-4 if name == "none" else 1.5 * step * np.abs(self.X).sum(-1).max())
        out = guest.tensor(np.zeros((2, 3, 32), np.float32))
        assert method.apply(x, packed, 32, bias, out) is out
        np.testing.assert_array_equal(back(out), back(got))

    def test_unknown_name_lists_what_there_is(self) -> None:
        with pytest.raises(KeyError, match=r"want one of .*none.*; have 'wint3'"):
            GuestQuant.named("wint3")
