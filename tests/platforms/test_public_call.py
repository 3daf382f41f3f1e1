"""`fd_core.ops.<name>`: the caller's own tensors in and out, nothing copied, everything checked."""

from __future__ import annotations

import inspect
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fd_core import ops
from fd_core.api.device import Device
from fd_core.api.dtype import bfloat16
from fd_core.api.kernel import OpSpec
from fd_core.api.tensor import Storage, Tensor, from_numpy
from fd_core.host import session as sessions
from fd_core.ops import call as calls
from fd_core.ops.call import call, public_op
from fd_core.ops.schema import In, InOut, Out, op

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 8)).astype(np.float32)
W = RNG.standard_normal(8).astype(np.float32)
WANT = X / np.sqrt((X * X).mean(-1, keepdims=True) + 1e-6) * W


@pytest.fixture(autouse=True)
def session(monkeypatch: pytest.MonkeyPatch) -> sessions.Session:
    """The platform does not matter here, so the one that is always there."""
    opened = sessions.open_session("reference")
    monkeypatch.setattr(sessions, "current", opened)
    return opened


@op(family="test", cases=(), tolerance=None, infer=lambda x, scale: [x, x])  # type: ignore[arg-type]
def two_results(x: In, scale: float, first: Out, second: Out) -> None:
    """Two outputs."""
    first[...] = x * scale
    second[...] = x + scale


@op(family="test", cases=(), tolerance=None)  # type: ignore[arg-type]
def add_in_place(x: InOut, y: In) -> None:
    """No outputs."""
    x += y


class Recorded:
    """A session whose dispatch runs one op's oracle and keeps the tensors it was given."""

    def __init__(self, session: sessions.Session, definition: Any) -> None:
        self.platform, self.device, self.seen = session.platform, session.device, []
        self.ops, self._definition = self, definition
        setattr(self, definition.name, self.run)

    def run(self, *args: Any) -> None:
        self.seen = list(args)
        self._definition.oracle(*(a.numpy() if isinstance(a, Tensor) else a for a in args))


class TestArrays:
    def test_positional_and_keyword(self) -> None:
        np.testing.assert_allclose(ops.rms_norm(X, W, 1e-6), WANT, rtol=1e-5)
        np.testing.assert_allclose(ops.rms_norm(X, eps=1e-6, weight=W), WANT, rtol=1e-5)

    def test_result_has_the_callers_type(self) -> None:
        assert type(ops.rms_norm(X, W, 1e-6)) is np.ndarray
        assert isinstance(ops.rms_norm(from_numpy(X), from_numpy(W), 1e-6), Tensor)

    def test_given_output_is_returned_itself(self) -> None:
        for out in (np.empty_like(X), from_numpy(np.empty_like(X))):
            assert ops.rms_norm(X, W, 1e-6, out) is out
            assert ops.rms_norm(X, W, 1e-6, out=out) is out

    def test_types_that_numpy_lacks(self) -> None:
        got = ops.rms_norm(X.astype(ml_dtypes.bfloat16), W.astype(ml_dtypes.bfloat16), 1e-6)
        assert got.dtype == bfloat16.numpy()
        np.testing.assert_allclose(got.astype(np.float32), WANT, rtol=0.03, atol=0.03)

    def test_strided_views_are_read_in_place(self) -> None:
        wide = np.tile(X, (1, 2))
        np.testing.assert_allclose(ops.rms_norm(wide[:, :8], W, 1e-6), WANT, rtol=1e-5)

    def test_read_only_inputs(self) -> None:
        frozen = X.copy()
        frozen.flags.writeable = False
        np.testing.assert_allclose(ops.rms_norm(frozen, W, 1e-6), WANT, rtol=1e-5)
        with pytest.raises(ValueError, match=r"rms_norm.out: want a writable array"):
            ops.rms_norm(X, W, 1e-6, out=frozen)

    def test_nothing_is_copied(self, session: sessions.Session) -> None:
        recorded = Recorded(session, two_results)
        first = np.empty_like(X)
        results = call(two_results, recorded, (X, 2.0), {"first": first})  # type: ignore[arg-type]
        assert [t.ptr for t in (recorded.seen[0], *recorded.seen[2:])] == [
            a.ctypes.data for a in (X, *results)
        ]


class TestOutputs:
    def test_several_come_as_a_list(self, session: sessions.Session) -> None:
        first, second = call(two_results, Recorded(session, two_results), (X, 2), {})  # type: ignore[arg-type]
        np.testing.assert_array_equal(first, X * 2)
        np.testing.assert_array_equal(second, X + 2)

    def test_out_takes_all_of_them(self, session: sessions.Session) -> None:
        mine = [np.empty_like(X), np.empty_like(X)]
        got = call(two_results, Recorded(session, two_results), (X, 2), {"out": mine})  # type: ignore[arg-type]
        assert [id(a) for a in got] == [id(a) for a in mine]
        with pytest.raises(TypeError, match="out= wants 2 tensors, have 1"):
            call(two_results, session, (X, 2), {"out": X})

    def test_none_at_all_returns_what_was_changed(self, session: sessions.Session) -> None:
        x = X.copy()
        assert call(add_in_place, Recorded(session, add_in_place), (x, X), {}) is x  # type: ignore[arg-type]
        np.testing.assert_array_equal(x, 2 * X)

    def test_read_only_memory_is_never_changed(self, session: sessions.Session) -> None:
        frozen = X.copy()
        frozen.flags.writeable = False
        with pytest.raises(ValueError, match=r"add_in_place.x: want a writable array"):
            call(add_in_place, session, (frozen, X), {})


class TestRefusals:
    @pytest.mark.parametrize(
        ("args", "kwargs", "error", "text"),
        [
            ((X, W), {}, TypeError, "rms_norm: missing eps"),
            ((X, W, 1e-6, X, X), {}, TypeError, "at most 4 arguments, have 5"),
            ((X, W, 1e-6), {"x": X}, TypeError, "got multiple values for argument 'x'"),
            (
                (X, W, 1e-6),
                {"bias": X},
                TypeError,
                "'bias' is unknown; the parameters are x, weight, eps, out",
            ),
            ((X, [1.0] * 8, 1e-6), {}, TypeError, r"rms_norm.weight: want a tensor .*have list"),
            ((X, None, 1e-6), {}, TypeError, r"rms_norm.weight: want a tensor .*have NoneType"),
            ((X, W, "small"), {}, TypeError, r"rms_norm.eps: want float, have 'small'"),
            ((X.astype(">f4"), W, 1e-6), {}, TypeError, r"rms_norm.x: want native byte order, have >f4"),
            ((X.astype(complex), W, 1e-6), {}, ValueError, r"rms_norm.x: unknown dtype 'complex128'"),
        ],
    )
    def test_call(self, args: Any, kwargs: Any, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=text):
            ops.rms_norm(*args, **kwargs)

    def test_another_devices_tensor(self) -> None:
        far = Storage(4096, 96, Device("gpu", 1, 2))
        x = Tensor(4096, (3, 8), from_numpy(X).dtype, far)
        with pytest.raises(ValueError, match=r"rms_norm.x: want a tensor on cpu:0, have one on gpu:1; fix"):
            ops.rms_norm(x, W, 1e-6)
        with pytest.raises(ValueError, match=r"rms_norm.out: want a tensor on cpu:0"):
            ops.rms_norm(X, W, 1e-6, out=x)

    def test_unknown_op_names_the_nearest(self) -> None:
        with pytest.raises(AttributeError, match=r"no op is called 'rms_nrm'; nearest: rms_norm"):
            _ = ops.rms_nrm

    def test_numpy_scalars_are_attributes(self) -> None:
        np.testing.assert_allclose(ops.rms_norm(X, W, np.float32(1e-6)), WANT, rtol=1e-5)


class TestNames:
    def test_ops_come_before_families_of_the_same_name(self) -> None:
        import fd_core.ops.embedding.embedding  # noqa: F401  (binds the family as an attribute)

        assert ops.embedding is public_op("embedding")

    def test_help(self) -> None:
        assert "rms_norm" in dir(ops)
        assert str(inspect.signature(ops.rms_norm)) == "(x, weight, eps, out=None)"
        assert "sqrt" in (ops.rms_norm.__doc__ or "")
        assert isinstance(ops.rms_norm.definition.spec, OpSpec)

    def test_a_mark_is_on_ops_made_before_and_after(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Frameworks' tracers recognise by it what they leave alone."""
        monkeypatch.setattr(calls, "_functions", [])
        monkeypatch.setattr(calls, "_marks", {})
        before = calls.function(ops.rms_norm.definition)
        calls.mark("traced_as", "it is")
        after = calls.function(ops.rms_norm.definition)
        assert [op.traced_as for op in (before, after)] == ["it is"] * 2  # type: ignore[attr-defined]


class TestGuests:
    """A library known only by DLPack and its own `from_dlpack`."""

    def test_torch(self) -> None:
        torch = pytest.importorskip("torch", reason="torch is not installed")
        for kind in (torch.float32, torch.bfloat16, torch.float16):
            x, w = torch.from_numpy(X.copy()).to(kind), torch.from_numpy(W.copy()).to(kind)
            got = ops.rms_norm(x, w, 1e-6)
            assert (type(got), got.dtype) == (torch.Tensor, kind)
            torch.testing.assert_close(got.float(), torch.from_numpy(WANT), rtol=0.03, atol=0.03)
            out = torch.empty_like(x)
            assert ops.rms_norm(x, w, 1e-6, out=out) is out
            assert torch.equal(out, got)

    def test_torch_tensor_with_gradient_is_refused(self) -> None:
        torch = pytest.importorskip("torch", reason="torch is not installed")
        x = torch.ones(2, 8, requires_grad=True)
        with pytest.raises(
            TypeError, match=r"rms_norm.x: want a tensor that exports DLPack, have Tensor: .*detach"
        ):
            ops.rms_norm(x, torch.ones(8), 1e-6)

    def test_result_shares_memory_with_what_the_op_wrote(self, session: sessions.Session) -> None:
        torch = pytest.importorskip("torch", reason="torch is not installed")
        recorded = Recorded(session, two_results)
        x = torch.from_numpy(X.copy())
        first, second = call(two_results, recorded, (x, 2.0), {})  # type: ignore[arg-type]
        seen = [recorded.seen[0], *recorded.seen[2:]]
        assert [t.ptr for t in seen] == [t.data_ptr() for t in (x, first, second)]
        del recorded, seen
        assert torch.equal(second, x + 2)

    def test_exporter_without_a_library(self) -> None:
        class Bare:
            def __init__(self, array: Any) -> None:
                self.tensor = from_numpy(array)

            def __dlpack__(self, **options: Any) -> Any:
                return self.tensor.__dlpack__()

            def __dlpack_device__(self) -> tuple[int, int]:
                return (1, 0)

        got = ops.rms_norm(Bare(X.copy()), Bare(W.copy()), 1e-6)
        assert isinstance(got, Tensor)
        np.testing.assert_allclose(got.numpy(), WANT, rtol=1e-5)
