"""fd-xpu's ops and memory on Paddle's CPU place: the conformance kit, and what it does not ask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fd_core.api import dtype as dt
from fd_core.api.device import Device
from fd_core.api.platform import DeviceError
from fd_core.api.tensor import Storage, Tensor, TensorSpec, from_numpy
from fd_core.host.session import Session
from fd_core.ops.catalogue import catalogue
from fd_core.testkit.check import arguments, run_oracle
from fd_core.testkit.kit import examine, trials
from fd_core.testkit.trial import compare

pytest.importorskip("fd_xpu", reason="fd-xpu is not installed")
paddle = pytest.importorskip("paddle", reason="paddlepaddle is not installed")
from fd_xpu import call, compute, fused, memory  # noqa: E402
from fd_xpu import settings as own  # noqa: E402
from fd_xpu.kernels import table  # noqa: E402
from fd_xpu.platform import check_views  # noqa: E402

Array = np.ndarray[Any, Any]
#: Calls that Paddle refuses by itself would be no test of ours: everything runs in one process.
QUICK = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class TestConformance:
    @pytest.mark.parametrize("op", sorted(table()))
    def test_op_conforms(self, session: Session, op: str) -> None:
        findings = list(examine(session, [op]))
        failures = [finding for finding in findings if finding.status == "fail"]
        assert not failures, "\n".join(f"{f.case} {f.dtype} {f.check}: {f.detail}" for f in failures)
        assert any(finding.status == "pass" for finding in findings)

    @pytest.mark.parametrize("op", sorted(name for name, row in table().items() if row.get("fused")))
    def test_composition_conforms_where_the_build_has_the_operator(
        self,
        session: Session,
        op: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The other half of an op that is fused in this build."""
        monkeypatch.setattr(fused, "has", lambda *_: False)
        for trial in trials(session, [op], ["float32"]):
            inputs = trial.inputs()
            compare(
                trial, trial.run(arguments(trial.definition, inputs)), run_oracle(trial.definition, inputs)
            )

    def test_this_build_fuses_something(self) -> None:
        """Else the test above compares a composition with itself."""
        one = paddle.ones([1])
        assert fused.has("fused_rms_norm_quant", one)
        assert fused.has("swiglu", one)
        assert not fused.has("fused_rotary_position_embedding", one)  # Paddle has none for processors


class TestRotaryFused:
    def test_arguments_of_the_operator(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        """Paddle has no such kernel for processors. A function written from its documentation (halves,
        tables with each value twice) shows that what it would be given means what our op means."""

        def documented(
            q: Any, k: Any, *, sin: Any, cos: Any, use_neox_rotary_style: bool
        ) -> tuple[Any, Any]:
            assert not use_neox_rotary_style  # which is what Paddle calls neighbours
            assert sin.shape == cos.shape == [1, q.shape[1], 1, q.shape[3]]

            def turn(x: Any) -> Any:
                first, second = paddle.split(x, 2, axis=-1)
                return x * cos + paddle.concat([-second, first], -1) * sin

            return turn(q), turn(k)

        functional = paddle.incubate.nn.functional
        monkeypatch.setattr(functional, "fused_rotary_position_embedding", documented)
        monkeypatch.setattr(fused, "has", lambda name, _: name == "fused_rotary_position_embedding")
        seen = 0
        for trial in trials(session, ["fused_rotary_position_encoding"], ["float32"]):
            inputs = trial.inputs()
            got = trial.run(arguments(trial.definition, inputs))
            compare(trial, got, run_oracle(trial.definition, inputs))
            seen += inputs["is_neox"] and inputs["cos_sin_cache"].shape[1] == inputs["head_size"]
        assert seen


class TestMemory:
    @given(
        shape=st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
        kind=st.sampled_from(dt.ALL),
        data=st.data(),
    )
    @QUICK
    def test_views_share_memory(self, session: Session, shape: Any, kind: Any, data: Any) -> None:
        """Any slice of any permutation, in every element type, against NumPy on the same bytes."""
        array = np.random.default_rng(0).integers(0, 2, shape).astype(kind.numpy())
        tensor = session.platform.from_host(array)
        order = data.draw(st.permutations(range(len(shape))))
        view, want = tensor.permute(*order), array.transpose(order)
        start = data.draw(st.integers(0, want.shape[0] - 1))
        view, want = view.slice(start, want.shape[0]), want[start:]
        assert session.platform.to_host(view).tobytes() == want.tobytes()
        ones = np.ones(want.shape, kind.numpy())
        session.platform.copy_(view, from_numpy(ones))
        want[...] = ones
        assert session.platform.to_host(tensor).tobytes() == array.tobytes()

    def test_no_copy_for_kernels(self, session: Session) -> None:
        tensor = session.platform.empty(TensorSpec((4, 6), dt.bfloat16)).slice(1, 3)
        assert memory.as_paddle(tensor).data_ptr() == tensor.ptr
        assert memory.as_paddle(tensor) is memory.as_paddle(tensor.slice(0, 2))  # equal views are made once

    def test_more_views_than_are_kept(self, session: Session) -> None:
        tensor = session.platform.from_host(np.arange(memory.MAX_VIEWS + 9, dtype=np.int32))
        values = [int(memory.as_paddle(tensor.slice(i, i + 1)).item()) for i in range(tensor.shape[0])]
        assert values == list(range(tensor.shape[0]))
        assert len(tensor.storage.owner.views) <= memory.MAX_VIEWS

    def test_too_much(self, session: Session) -> None:
        spec = TensorSpec((1 << 44,), dt.uint8)
        with pytest.raises(
            MemoryError, match=r"platform 'xpu': want \d+ bytes .* have \d+ bytes free; use a smaller"
        ):
            session.platform.empty(spec)

    def test_types_that_paddle_lacks_are_kept_and_not_computed_with(self, session: Session) -> None:
        array = np.array([3, 2**32 - 1], np.uint32)
        tensor = session.platform.from_host(array)
        assert session.platform.to_host(tensor).tolist() == array.tolist()
        with pytest.raises(TypeError, match="want an element type that Paddle has, have uint32"):
            memory.as_paddle(tensor)

    def test_a_device_index_that_is_not_there(self, session: Session) -> None:
        with pytest.raises(IndexError, match="want a device index below 1, have 1"):
            session.platform.open(1)

    def test_place_whose_views_do_not_share_memory_is_refused(
        self,
        session: Session,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A Paddle without stride kernels would compute on copies: `open` notices."""
        real = paddle.as_strided
        monkeypatch.setattr(paddle, "as_strided", lambda *a: real(*a).clone())
        with pytest.raises(DeviceError, match=r"want views that share memory .* FLAGS_use_stride_kernel=1"):
            check_views(session.platform)


class TestGuests:
    """On the stand-in device memory is the host's: arrays and Paddle tensors go in as they are."""

    def test_paddle_tensor_in_place(self, session: Session) -> None:
        whole = paddle.arange(24, dtype="float32").reshape([4, 6])
        part = memory.from_paddle(whole[1:3], session.device.device, session.platform)
        assert part.ptr == whole.data_ptr() + 24
        session.ops.silu(part, part)
        want = np.arange(24, dtype=np.float32).reshape(4, 6)
        want[1:3] = want[1:3] / (1 + np.exp(-want[1:3]))
        np.testing.assert_allclose(whole.numpy(), want, rtol=1e-6)

    def test_strided_paddle_tensor(self, session: Session) -> None:
        whole = paddle.arange(24, dtype="float32").reshape([4, 6])
        part = memory.from_paddle(whole[:, 2:4], session.device.device, session.platform)
        assert (part.shape, part.strides) == ((4, 2), (6, 1))
        assert session.platform.to_host(part).tolist() == whole.numpy()[:, 2:4].tolist()

    def test_arrays_through_dlpack(self, session: Session) -> None:
        x, out = np.linspace(-3, 3, 8, dtype=np.float32).reshape(2, 4), np.empty((2, 4), np.float32)
        session.ops.silu(from_numpy(x), from_numpy(out))
        np.testing.assert_allclose(out, x / (1 + np.exp(-x)), rtol=1e-6)

    def test_memory_of_other_devices(self, session: Session) -> None:

        away = Tensor(4096, (2, 4), dt.float32, Storage(4096, 32, Device("away", 0, 99)))
        here = session.platform.empty(TensorSpec((2, 4), dt.float32))
        with pytest.raises(ValueError, match=r"silu.x: want a tensor on xpu:0, have one on away:0"):
            session.ops.silu(away, here)
        with pytest.raises(TypeError, match="want memory of a Paddle tensor, have other memory on away:0"):
            session.ops.silu(away, away)


class TestValues:
    """Ids and lengths that would lead outside: refused by name, before anything is written."""

    def test_ids(self, session: Session) -> None:
        place = session.platform.from_host
        out = place(np.full((2, 3), 7, np.float32))
        weight = place(np.ones((5, 3), np.float32))
        with pytest.raises(
            ValueError, match=r"embedding.ids: want indices in \[0, 5\), have 5 at position 1"
        ):
            session.ops.embedding(place(np.array([0, 5])), weight, out)
        assert (session.platform.to_host(out) == 7).all()

    def test_ids_may_go_unchecked(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        """FD_XPU_CHECK_IDS=0: no waiting for the device; right ids are as right as before."""

        monkeypatch.setenv("FD_XPU_CHECK_IDS", "0")
        own.check_ids.cache_clear()
        try:
            assert not own.check_ids(True)
            compute.check_range("op.ids", paddle.to_tensor([9]), 0, 5)
        finally:
            own.check_ids.cache_clear()

    def test_too_many_logits_for_the_slots(self, session: Session) -> None:
        definition = catalogue()["get_token_penalty_multi_scores"]
        inputs = definition.cases[2].args(np.random.default_rng(0), np.dtype(np.float32))
        inputs["logits"] = np.concatenate([inputs["logits"]] * 2)
        values = [
            session.platform.from_host(v) if isinstance(v, np.ndarray) else v for v in inputs.values()
        ]
        with pytest.raises(ValueError, match=r"logits: want at most 10 rows, have 18"):
            session.ops.get_token_penalty_multi_scores(*values)

    def test_result_of_another_shape_is_not_written(self, session: Session) -> None:
        target = session.platform.from_host(np.zeros((2, 2), np.float32))
        with pytest.raises(ValueError, match=r"demo: want an output of \[3\], have \[2, 2\]"):
            call.write("demo", [(target, memory.as_paddle(target))], [paddle.ones([3])])

    def test_tiny_numbers_in_float16(self) -> None:
        """Paddle's own cast makes -1.1e-6 of -6e-26 when many numbers are cast at once."""
        tiny = paddle.full([64], -6.0e-26, "float32")
        assert np.abs(call.rounded(tiny, paddle.float16).astype("float32").numpy()).max() == 0
