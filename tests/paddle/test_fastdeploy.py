"""FastDeploy's operators by their names, argument orders and forms, on paddle's tensors and NumPy's.

Expected values are worked out here by hand or in plain NumPy, from the operators' published behaviour.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from guests import GUESTS, Guest, on_host

from fd_core.compat import fastdeploy as fd
from fd_core.compat.fastdeploy import attention, settings
from fd_core.host.errors import UnsupportedOpError
from fd_core.host.session import current_session

RNG = np.random.default_rng(1)


@pytest.fixture(params=GUESTS[:3], ids=lambda guest: guest.name)
def guest(request: pytest.FixtureRequest) -> Guest:
    request.param.load()
    return request.param  # type: ignore[no-any-return]


def back(value: Any) -> np.ndarray[Any, Any]:
    return on_host(current_session(), value)


def same(value: Any, want: Any) -> None:
    np.testing.assert_array_equal(back(value), want)


def i64(*rows: Any) -> np.ndarray[Any, Any]:
    return np.array(rows, np.int64)


def i32(*rows: Any) -> np.ndarray[Any, Any]:
    return np.array(rows, np.int32)


class TestPadding:
    IDS = np.full((3, 10), 2, np.int64)
    IDS[0, :4], IDS[1, :3], IDS[2, :6] = (8, 7, 8, 2), (4, 5, 5), (7, 6, 1, 7, 2, 6)
    WANT = (
        [8, 7, 8, 2, 4, 5, 5, 7, 6, 1, 7, 2, 6],
        [0] * 4 + [1] * 3 + [2] * 6,
        [0, 4, 7, 13],
        [0, 4, 7, 13],
    )

    @pytest.mark.parametrize("form", ["newest", "without decoder", "token tensor", "oldest"])
    def test_get_padding_offset(self, guest: Guest, form: str) -> None:
        ids, lens = guest.tensor(self.IDS), guest.tensor(i32([4], [3], [6]))
        count = guest.tensor(i64(13))
        args: dict[str, tuple[Any, ...]] = {
            "newest": (ids, lens, None, None, None, 13),
            "without decoder": (ids, lens, None, None, 13),
            "token tensor": (ids, count, lens),
            "oldest": (ids, guest.tensor(i32(6, 13, 17)), count, lens),
        }
        for got, want in zip(fd.get_padding_offset(*args[form]), self.WANT, strict=True):
            same(got, want)

    @pytest.mark.parametrize("form", ["sums", "offsets"])
    def test_rebuild_padding(self, guest: Guest, form: str) -> None:
        """Three slots: a prompt of 4, a decode, an idle one; positions 0-3 and 4."""
        hidden = np.arange(10, dtype=np.float32).reshape(5, 2)
        this, decoder, encoder = i32(4, 1, 0), i32(0, 7, 0), i32(4, 0, 0)
        lengths = [guest.tensor(a) for a in (this, decoder, encoder)]
        want = [[6, 7], [8, 9], [0, 0]]
        if form == "sums":
            sums = guest.tensor(i32(0, 4, 5, 5))
            same(fd.rebuild_padding(guest.tensor(hidden), sums, *lengths, None, None, 8, False), want)
        else:  # padding before each slot, with rows of 8
            offsets = guest.tensor(i32(0, 4, 11))
            same(fd.rebuild_padding(guest.tensor(hidden), offsets, *lengths, None, 8), want)

    def test_rebuild_padding_counts_the_rows_of_drafts(self, guest: Guest) -> None:
        hidden = np.arange(12, dtype=np.float32).reshape(6, 2)
        lengths = [guest.tensor(a) for a in (i32(4, 2), i32(0, 7), i32(4, 0))]
        offsets = guest.tensor(i32(0, 7, 7))  # row 0 of slot 0; rows 8 and 9 of slot 1
        got = fd.rebuild_padding(
            guest.tensor(hidden), guest.tensor(i32(0, 4, 6)), *lengths, offsets, None, 8, False
        )
        same(got, [[6, 7], [8, 9], [10, 11]])

    def test_positions_in_place(self, guest: Guest) -> None:
        out = guest.tensor(np.zeros(8, np.int32))
        got = fd.get_position_ids_and_mask_encoder_batch(
            *(guest.tensor(a) for a in (i32(3, 2), i32(1, 2), i32(1, 2))), out
        )
        assert got is out
        same(out, [1, 2, 3, 2, 3, 0, 0, 0])
        with pytest.raises(UnsupportedOpError, match=r"mask_encoder_batch.*fix: call the newer form"):
            fd.get_position_ids_and_mask_encoder_batch(out, out, out, out, out)


class TestNorms:
    X = RNG.standard_normal((2, 3, 8)).astype(np.float32)
    W = RNG.standard_normal(8).astype(np.float32)

    @staticmethod
    def norm(x: Any, w: Any, eps: float) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w

    def test_rmsnorm_pair(self, guest: Guest) -> None:
        rows = self.X.reshape(6, 8)
        x, w, out = guest.tensor(rows), guest.tensor(self.W), guest.tensor(np.zeros_like(rows))
        np.testing.assert_allclose(back(fd.rmsnorm(x, w, 1e-5)), self.norm(rows, self.W, 1e-5), rtol=1e-5)
        assert fd.rmsnorm(x, w, 1e-5, out=out, enable_pdl=True) is out
        residual = guest.tensor(rows * 2)
        got = fd.fused_add_rmsnorm(x, residual, w, 1e-5)
        np.testing.assert_allclose(back(residual), rows * 3, rtol=1e-6)
        np.testing.assert_allclose(back(got[0]), self.norm(rows * 3, self.W, 1e-5), rtol=1e-5)

    def test_fused_rms_norm_leaves_its_arguments_alone(self, guest: Guest) -> None:
        x, residual, w = (guest.tensor(a) for a in (self.X, self.X * 2, self.W))
        out, total = fd.fused_rms_norm(x, w, None, 1e-5, 2, residual=residual)
        assert list(out.shape) == [2, 3, 8]
        np.testing.assert_allclose(back(total), self.X * 3, rtol=1e-6)
        np.testing.assert_allclose(back(out), self.norm(self.X * 3, self.W, 1e-5), rtol=1e-5)
        same(x, self.X)
        same(residual, self.X * 2)
        for options in ({"bias": w}, {"quant_scale": 0.5}):
            with pytest.raises(UnsupportedOpError, match=r"fused_rms_norm\.(bias|quant_scale)"):
                fd.fused_rms_norm(x, w, None, 1e-5, 2, **options)

    def test_rotary_has_the_limit_that_callers_expect(self, guest: Guest) -> None:
        query, key = (guest.tensor(np.zeros((65536, 4), np.float32)) for _ in range(2))
        positions = guest.tensor(np.zeros(65536, np.int32))
        table = guest.tensor(np.ones((1, 4), np.float32))
        with pytest.raises(ValueError, match=r"at most 65535 tokens, have 65536; fix"):
            fd.fused_rotary_position_encoding(query, key, positions, table, 4, False)

    def test_qk_norm_by_name(self, guest: Guest) -> None:
        qkv = RNG.standard_normal((2, 12)).astype(np.float32)
        w = np.ones(4, np.float32)
        tensor = guest.tensor(qkv)
        got = fd.qk_rmsnorm_fused(
            tensor, guest.tensor(w), guest.tensor(w), 0.0, q_size=4, kv_size=4, head_dim=4
        )
        assert got is tensor
        want = np.concatenate([self.norm(qkv[:, i : i + 4], w, 0.0) for i in (0, 4)] + [qkv[:, 8:]], 1)
        np.testing.assert_allclose(back(got), want, rtol=1e-5)


class TestAttention:
    """One sequence of two new tokens behind one cached; one head, dimension 8, blocks of 4."""

    def call(self, guest: Guest, *options: Any, name: str = "append_attention", **named: Any) -> Any:
        rng = np.random.default_rng(3)
        self.qkv = rng.standard_normal((2, 24)).astype(np.float32)
        self.keys, self.values = (rng.standard_normal((2, 1, 4, 8)).astype(np.float32) for _ in range(2))
        self.caches = [guest.tensor(self.keys), guest.tensor(self.values)]
        lists = [guest.tensor(a) for a in (i32(0), i32(1), i32(2), i32(0, 0), i32(0, 2), i32([1, -1]))]
        tiles = [None] * 9
        out = [guest.tensor(np.zeros((2, 8), np.float32))] if name.endswith("output") else []
        rotary = np.zeros((2, 1, 8, 1, 4), np.float32)
        rotary[0] = 1
        operator = getattr(fd, name)
        args = (guest.tensor(self.qkv), *self.caches, *lists, *tiles, None, *out, guest.tensor(rotary))
        return operator(*args, *options, **named), out

    def want(self) -> Any:
        q, k, v = (self.qkv[:, i : i + 8].astype(np.float64) for i in (0, 8, 16))
        keys = np.concatenate([self.keys[1, 0, :1], k])
        values = np.concatenate([self.values[1, 0, :1], v])
        rows = []
        for i in range(2):
            p = np.exp(keys[: i + 2] @ q[i] / np.sqrt(8))
            rows.append(p @ values[: i + 2] / p.sum())
        return np.array(rows)

    def test_tile_lists_are_not_needed(self, guest: Guest) -> None:
        got, _ = self.call(guest)
        np.testing.assert_allclose(back(got), self.want(), rtol=2e-5)
        same(self.caches[0], self.written(self.keys, 8))
        same(self.caches[1], self.written(self.values, 16))

    def written(self, cache: Any, column: int) -> Any:
        after = cache.copy()
        after[1, 0, 1:3] = self.qkv[:, column : column + 8]
        return after

    def test_all_options_by_position(self, guest: Guest) -> None:
        got, _ = self.call(guest, *attention.OPTIONS.values())
        np.testing.assert_allclose(back(got), self.want(), rtol=2e-5)

    def test_options_by_either_name(self, guest: Guest) -> None:
        got, out = self.call(
            guest, name="append_attention_with_output", compute_type="fp16", cache_quant_type="none",
            max_input_length=8, speculate_decoder=True, rope_3d_delta=None,
        )  # fmt: skip
        assert got is out[0]
        np.testing.assert_allclose(back(got), self.want(), rtol=2e-5)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("causal", False), ("sink_size", 4), ("cache_quant_type_str", "cache_int8"), ("rope_3d", True),
         ("out_linear_in_scale", 0.5)],
    )  # fmt: skip
    def test_what_the_op_lacks_is_refused_by_name(self, guest: Guest, name: str, value: Any) -> None:
        with pytest.raises(UnsupportedOpError, match=rf"append_attention.*{name}: want its default"):
            self.call(guest, **{name: value})
        same(self.caches[0], self.keys)

    def test_masks_and_unknown_names(self, guest: Guest) -> None:
        with pytest.raises(UnsupportedOpError, match="attn_mask: want its default, have a tensor"):
            self.call(guest, guest.tensor(np.zeros((1, 2, 2), bool)))
        with pytest.raises(TypeError, match="unknown or given twice: window"):
            self.call(guest, window=3)

    @pytest.mark.parametrize("mode", [0, 1])
    def test_swap_cache(self, guest: Guest, mode: int) -> None:
        pool = np.arange(3 * 8, dtype=np.float32).reshape(3, 2, 4)
        cache = -np.arange(4 * 8, dtype=np.float32).reshape(4, 2, 4)
        tensor, before = guest.tensor(cache), pool.copy()
        fd.swap_cache_all_layers([tensor], [pool.ctypes.data], 3, [3, 0], [1, 2], 0, mode)
        if mode == 0:
            np.testing.assert_array_equal(pool, np.stack([before[0], cache[3], cache[0]]))
        else:
            same(tensor, np.stack([pool[2], cache[1], cache[2], pool[1]]))


class TestExperts:
    """Two tokens, two experts, one each."""

    X = RNG.standard_normal((2, 8)).astype(np.float32)
    SCORES = np.array([[0.2, 0.8], [0.7, 0.3]], np.float32)

    def dispatch(self, guest: Guest, *rest: Any) -> Any:
        return fd.moe_expert_dispatch(
            guest.tensor(self.X), guest.tensor(self.SCORES), None, None, 1, False, *rest
        )

    def test_dispatch_without_the_later_arguments(self, guest: Guest) -> None:
        results = self.dispatch(guest)
        assert len(results) == 6
        same(results[0], self.X[[1, 0]])
        same(results[1], [1, 2])

    def test_number_of_results_is_a_setting(self, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(settings, "moe_dispatch_results", 8)
        results = self.dispatch(guest, "", True)
        assert len(results) == 8
        same(results[7], [1])

    @pytest.mark.parametrize("form", [1, 2, 3])
    def test_ffn_forms_are_told_apart_by_the_methods_place(self, guest: Guest, form: int) -> None:
        up = RNG.standard_normal((2, 8, 8)).astype(np.float32)
        down = RNG.standard_normal((2, 4, 8)).astype(np.float32)
        rows = [guest.tensor(a) for a in (self.X, i64(1, 2), up, down)]
        between = {1: (), 2: (None,), 3: (None,)}[form]
        hint = (guest.tensor(i64(1)),) if form == 3 else ()
        tail = ("none", False) if form == 1 else ("none", False, -1, 128, "swiglu")
        got = fd.moe_expert_ffn(*rows, *between, None, None, None, None, None, *hint, *tail)
        hidden = np.stack([self.X[e] @ up[e] for e in range(2)])
        gate, value = hidden[:, :4], hidden[:, 4:]
        active = gate / (1 + np.exp(-gate)) * value
        want = np.stack([active[e] @ down[e] for e in range(2)])
        np.testing.assert_allclose(back(got), want, rtol=1e-4, atol=1e-5)
        if form > 1:
            with pytest.raises(UnsupportedOpError, match=r"activation.*have swigluoai"):
                fd.moe_expert_ffn(*rows, *between, *[None] * 5, *hint, "none", False, -1, 128, "swigluoai")

    def test_preprocess_under_both_names(self, guest: Guest) -> None:
        ids = guest.tensor(i64([1, 0], [1, 1]))
        for name in ("tritonmoe_preprocess", "tritonmoe_preprocess_func"):
            sorted_ids, experts, total = getattr(fd, name)(ids, 2, 2)
            same(total, [6])
            same(back(sorted_ids)[:6], [1, 4, 0, 2, 3, 4])
            same(back(experts)[:3], [0, 1, 1])
