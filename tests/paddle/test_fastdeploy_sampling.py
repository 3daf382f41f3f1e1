"""FastDeploy's sampling operators in all their forms, and its names as a whole.

Expected values are worked out here by hand or in plain NumPy, from the operators' published behaviour.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from guests import GUESTS, Guest, on_host

from fd_core.compat import fastdeploy as fd
from fd_core.compat.fastdeploy import absent, sampling
from fd_core.host.errors import UnsupportedOpError
from fd_core.host.session import current_session
from fd_core.ops.catalogue import catalogue

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


class TestSampling:
    def probs(self, guest: Guest) -> Any:
        rows = np.zeros((3, 6), np.float32)
        rows[:, 4], rows[:, 1] = 0.7, 0.3
        return guest.tensor(rows)

    def test_both_forms_and_the_alias(self, guest: Guest) -> None:
        probs, half = self.probs(guest), guest.tensor(np.full(3, 0.5, np.float32))
        for got in (
            fd.rejection_top_p_sampling(probs, half, None, 7),
            fd.rejection_top_p_sampling(probs, half, 7),
            fd.top_p_sampling_reject(probs, half, 7),
            fd.rejection_top_p_sampling(probs, half, guest.tensor(i64([1], [1], [1])), -1),
        ):
            same(got, [[4]] * 3)

    def test_seeds(self) -> None:
        assert sampling.seed_of(5) == 5
        drawn = {sampling.seed_of(-1) for _ in range(100)}
        assert len(drawn) == 100
        assert all(0 <= seed < 2**63 for seed in drawn)

    @pytest.mark.parametrize("form", [13, 12, "floating 12", 10])
    def test_penalty_forms(self, guest: Guest, form: int | str) -> None:
        """Slot 0: prompt [1, 2], generated [3, 3]; slot 1: no prompt, generated [0]."""
        logits = np.array([[1, 2, 3, 4, -5], [1, 2, 3, 4, -5]], np.float32)
        pre, prompt = i64([3, 3, -1], [0, -1, -1]), i64([1, 2], [4, 4])
        prompt_len, bad = i64([2], [0]), i64([4])
        column = lambda v: guest.tensor(np.full((2, 1), v, np.float32))  # noqa: E731
        scores = [column(v) for v in (2.0, 0.5, 0.25, 1.0)]
        tail = [guest.tensor(a) for a in (i64([2], [1]), i64([0], [0]), i64([2]))]
        tensor = guest.tensor(logits)
        bads = guest.tensor(np.repeat(bad, 2, 0)), guest.tensor(i64([1], [1]))
        ids = [guest.tensor(a) for a in (pre, prompt, prompt_len)]
        if form == 13:
            got = fd.get_token_penalty_multi_scores(*ids, tensor, *scores, *bads, *tail)
        elif form == 12:
            got = fd.get_token_penalty_multi_scores(*ids, tensor, *scores, guest.tensor(bad), *tail)
        elif form == 10:
            got = fd.get_token_penalty_multi_scores(ids[0], tensor, *scores, guest.tensor(bad), *tail)
        else:
            every = guest.tensor(i64([1, 2, 3, 3, -1], [0, -1, -1, -1, -1]))
            got = fd.get_token_penalty_multi_scores(every, tensor, *scores, *bads, ids[2], *tail)
        assert got is tensor
        seen = [1.0, 1.0, 1.5] if form != 10 else [1.0, 2.0, 3.0]
        want = [[*seen, 4 / 2 - 2 * 0.5 - 0.25, -1e10], [1 / 2 - 0.5 - 0.25, 2, 3, 4, -1e10]]
        np.testing.assert_allclose(back(got), np.array(want, np.float32), rtol=1e-6)

    @pytest.mark.parametrize("form", [6, 10, 12, 14])
    @pytest.mark.parametrize("name", ["set_stop_value_multi_ends", "stop_generation_multi_ends"])
    def test_stop_forms(self, guest: Guest, form: int, name: str) -> None:
        """Slot 0 samples the end; slot 1 completes the sequence 5 6; slot 2 goes on."""
        topk, flags, following = i64([2], [6], [7]), np.zeros((3, 1), bool), np.zeros((3, 1), np.int64)
        state = [guest.tensor(a) for a in (topk, flags, np.ones((3, 1), np.int32), i64(2), following)]
        history = i64([1, 1, 2, -1], [1, 5, 6, -1], [1, 5, 7, -1])
        step = guest.tensor(i64([3], [3], [3]))
        sequences = guest.tensor(np.tile(i64([[5, 6]]), (3, 1, 1)))
        lengths = guest.tensor(i32([2], [2], [2]))
        least, most = guest.tensor(i64([0], [0], [0])), guest.tensor(i64([99], [99], [99]))
        rest: dict[int, tuple[Any, ...]] = {
            6: (),
            10: (guest.tensor(history), step, sequences, lengths),
            12: (
                guest.tensor(np.concatenate([i64([9, 9], [9, 9], [9, 9]), history], 1)),
                guest.tensor(i64([2], [2], [2])), step, sequences, lengths, least,
            ),
            14: (guest.tensor(history), step, sequences, lengths, guest.tensor(i64([0], [0], [0])),
                 guest.tensor(i32(0, 0, 0)), least, most),
        }  # fmt: skip
        got = getattr(fd, name)(*state, *rest[form], False)
        second = form != 6
        assert [r is s for r, s in zip(got, (state[0], state[1], state[4]), strict=True)] == [True] * 3
        same(state[1], [[True], [second], [False]])
        same(state[4], [[2], [2 if second else 6], [7]])

    def test_bitmask(self, guest: Guest) -> None:
        logits = guest.tensor(np.zeros((2, 6), np.float32))
        mask = guest.tensor(i32([0b000101], [0b111111]))
        assert fd.apply_token_bitmask_inplace(logits, mask) is logits
        same(np.isneginf(back(logits)), [[0, 1, 0, 1, 1, 1], [0] * 6])
        fd.apply_token_bitmask_inplace(logits, mask, vocab_size=2, indices=[])
        same(np.isneginf(back(logits))[1], [0] * 6)

    @pytest.mark.parametrize("short", [True, False])
    def test_thinking_limits(self, guest: Guest, short: bool) -> None:
        tokens = guest.tensor(i64([5], [7]))
        lens, steps, status = (guest.tensor(a) for a in (i32(5, -1), i64([5], [9]), i32(0, 0)))
        middle = () if short else (guest.tensor(np.zeros((2, 1), bool)), guest.tensor(i64([2], [2])))
        got = fd.limit_thinking_content_length_v1(tokens, lens, steps, status, *middle, 999)
        assert got is tokens
        same(tokens, [[999], [7]])
        same(status, [2, 0])
        tokens, status = guest.tensor(i64([5], [7])), guest.tensor(i32(0, 0))
        fd.limit_thinking_content_length_v2(tokens, lens, steps, status, *middle[:1], 999, 888)
        same(tokens, [[888], [7]])
        same(status, [1, 0])

    def test_thinking_limit_with_injection(self, guest: Guest) -> None:
        tokens, status = guest.tensor(i64([5])), guest.tensor(i32(0))
        args = [guest.tensor(a) for a in (i32(5), i64([5]))]
        more = [guest.tensor(a) for a in (np.zeros((1, 1), bool), i64([2]), i64(11, 12))]
        fd.limit_thinking_content_length_v3(tokens, *args, status, *more, 999)
        same(tokens, [[11]])
        same(status, [2])


class TestNames:
    def test_every_op_of_the_catalogue_is_reachable(self) -> None:
        for name in catalogue():
            assert callable(getattr(fd, name))

    def test_absent_operators_raise_with_a_reason_and_never_on_import(self) -> None:
        assert fd.unsupported()
        for name, reason in fd.unsupported().items():
            operator = getattr(fd, name)
            with pytest.raises(UnsupportedOpError, match=r"\[NO_KERNEL\] operator") as caught:
                operator(1, 2, key=3)
            assert reason in str(caught.value)
            assert caught.value.verdict

    def test_a_reason_ends_with_the_op(self) -> None:
        assert not set(fd.unsupported()) & set(catalogue())
        assert absent.REASONS["save_output"] == fd.unsupported()["save_output"]

    def test_unknown_names_get_the_nearest(self) -> None:
        with pytest.raises(AttributeError, match=r"is called 'rebuild_pading'; nearest: rebuild_p"):
            _ = fd.rebuild_pading

    def test_calls_that_fit_no_form_list_the_forms(self) -> None:
        with pytest.raises(TypeError, match=r"want one of\n  rebuild_padding\(tmp_out, cu_") as caught:
            fd.rebuild_padding(1, 2, bias=3)
        assert "have 2 positional arguments and bias" in str(caught.value)

    def test_help_lists_the_forms(self) -> None:
        assert fd.set_stop_value_multi_ends.__doc__.count("set_stop_value_multi_ends(") == 4
        assert "append_attention" in dir(fd)
        assert inspect.signature(fd.gelu_tanh._forms[0][0]).parameters.keys() == {"input"}

    @pytest.mark.parametrize("library", ["paddle", "torch"])
    def test_parameters_are_taken_while_gradients_are_recorded(self, library: str) -> None:
        guest = next(g for g in GUESTS if g.name == library)
        guest.load()
        w = guest.tensor(np.ones(8, np.float32))
        w.stop_gradient = False
        if library == "torch":
            w.requires_grad_()
        got = fd.rmsnorm(guest.tensor(np.ones((2, 8), np.float32)), w, 1e-6)
        assert not got.requires_grad
