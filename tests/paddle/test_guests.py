"""One list of promises for the tensors of every library: any op, in place, no copy, own stream."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from guests import GUESTS, Guest, on_host
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_core import ops
from fd_core.api import dtype as dt
from fd_core.api.ffi import tvm_ffi
from fd_core.api.kernel import Kernel, ParamKind
from fd_core.api.tensor import Tensor, from_numpy
from fd_core.host import session as sessions
from fd_core.host.dispatch import Dispatch, FrozenOp
from fd_core.host.session import Session, current_session, open_session
from fd_core.ops.catalogue import catalogue
from fd_core.ops.schema import Case, OpDef
from fd_core.testkit.check import assert_close, run_oracle

FLOATS = (dt.float32, dt.float16, dt.bfloat16)
TYPES = (*FLOATS, dt.float8_e4m3fn, dt.int8, dt.uint8, dt.int32, dt.int64, dt.bool_)


@pytest.fixture(params=GUESTS, ids=lambda guest: guest.name)
def guest(request: pytest.FixtureRequest) -> Guest:
    request.param.load()
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def session() -> Session:
    return current_session()


def trials() -> list[tuple[OpDef, Case, dt.DType]]:
    """The first case of every op that is no benchmark, in each of its element types."""
    found = []
    for definition in catalogue().values():
        case = next(c for c in definition.cases if not c.bench)
        found += [(definition, case, kind) for kind in case.dtypes]
    return found


def check(guest: Guest, definition: OpDef, case: Case, kind: dt.DType, session: Session) -> None:
    """Results and parameters changed in place are the oracle's; results are the guest's own tensors."""
    inputs = case.args(np.random.default_rng(0), kind.numpy())
    want = run_oracle(definition, inputs)
    args = {k: guest.tensor(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}
    got = getattr(ops, definition.name)(**args)
    results = got if isinstance(got, list) else [got]
    named = dict(zip([p.name for p in definition.spec.outputs], results, strict=False))
    for param in definition.spec.params:
        if isinstance(want[param.name], np.ndarray) and param.kind is not ParamKind.IN:
            value = named.get(param.name, args.get(param.name))
            assert type(value) is type(guest.tensor(np.zeros(1, np.float32)))
            result = np.ascontiguousarray(on_host(session, value))
            assert_close(definition, param.name, result, want[param.name])


def test_every_op_takes_and_returns_the_guests_tensors(guest: Guest, session: Session) -> None:
    if not guest.mutable:
        pytest.skip(f"{guest.name}: ops that change a tensor are refused, see below")
    done = set()
    for definition, case, kind in trials():
        if definition.name in session.ops:
            for _ in ("long way", "short way"):
                check(guest, definition, case, kind, session)
            done.add(definition.name)
    assert len(done) >= 0.9 * len(catalogue())


@pytest.mark.parametrize(
    "kind", [*FLOATS, dt.float8_e4m3fn, dt.int8, dt.uint8, dt.int32, dt.int64, dt.bool_]
)
def test_every_element_type_arrives_without_a_copy(guest: Guest, session: Session, kind: dt.DType) -> None:
    if kind == dt.int64 and not guest.wide:
        pytest.skip(f"{guest.name}: makes int32 of it by default")
    rows = np.arange(12).reshape(4, 3).astype(kind.numpy())
    src = guest.tensor(rows)
    picked = ops.gather_tokens(src, guest.tensor(np.array([2, 0], np.int32)))
    assert on_host(session, picked).tobytes() == rows[[2, 0]].tobytes()
    assert on_host(session, src).tobytes() == rows.tobytes()


@pytest.mark.parametrize("kind", FLOATS)
def test_nothing_is_copied_on_either_way(guest: Guest, kind: dt.DType) -> None:
    """The op writes where the guest's own pointer points, in the first (long) and later (short) calls."""
    if not guest.mutable:
        pytest.skip(f"{guest.name}: cannot be written")
    x = guest.tensor(np.ones((2, 8), kind.numpy()))
    out = guest.tensor(np.zeros((2, 8), kind.numpy()))
    place = pointer(out)
    for _ in range(3):
        assert ops.silu(x, out=out) is out
        assert pointer(out) == place


@pytest.mark.parametrize("library", ["paddle", "torch"])
def test_the_kernel_gets_the_guests_own_address(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = next(g for g in GUESTS if g.name == library)
    guest.load()
    seen: list[list[int]] = []
    target = tvm_ffi().convert(
        lambda *args: seen.append([address(a) for a in args if not isinstance(a, float)])
    )
    opened, kernel = current_session(), Kernel("rms_norm", "test", target)
    table = Dispatch("cpu:0", {"rms_norm": FrozenOp("rms_norm", kernel, target)})
    replaced = replace(opened, ops=table)
    monkeypatch.setattr(sessions, "current", replaced)
    wide, w, out = (guest.tensor(np.ones(s, np.float32)) for s in ((2, 16), (8,), (2, 8)))
    x = wide[:, 8:]
    for _ in range(3):  # the long way, then the short one
        ops.rms_norm(x, w, 1e-6, out=out)
        made = ops.rms_norm(x, w, 1e-6)
        assert seen[-2:] == [[*map(pointer, (x, w, out))], [*map(pointer, (x, w, made))]]
    assert pointer(x) == pointer(wide) + 32


def address(tensor: Any) -> int:
    """Where a kernel sees it: TVM-FFI hands Python functions the guest's own tensor, or a view."""
    return pointer(tensor) if hasattr(tensor, "data_ptr") else np.from_dlpack(tensor).ctypes.data


def test_changes_through_a_view_arrive_in_the_base(guest: Guest, session: Session) -> None:
    if not guest.views:
        pytest.skip(f"{guest.name}: its slices are copies")
    base, residual, w = (guest.tensor(np.ones(s, np.float32)) for s in ((2, 16), (2, 8), (8,)))
    for _ in range(2):
        ops.fused_add_rmsnorm(base[:, 8:], residual, w, 0.0)
    np.testing.assert_array_equal(on_host(session, base)[:, :8], 1)
    np.testing.assert_array_equal(on_host(session, residual), 3)


def pointer(tensor: Any) -> int:
    return int(tensor.ctypes.data if isinstance(tensor, np.ndarray) else tensor.data_ptr())


def test_strided_views_are_honoured_or_refused(guest: Guest, session: Session) -> None:
    wide = guest.tensor(np.arange(32, dtype=np.float32).reshape(2, 16))
    weight = guest.tensor(np.ones(8, np.float32))
    want = run_oracle(
        catalogue()["rms_norm"],
        {
            "x": np.arange(32, dtype=np.float32).reshape(2, 16)[:, 8:],
            "weight": np.ones(8, np.float32),
            "eps": 0.0,
        },
    )["out"]
    for _ in range(2):
        got = ops.rms_norm(wide[:, 8:], weight, 0.0)
        np.testing.assert_allclose(on_host(session, got), want, rtol=1e-5)
        if not guest.views:
            continue
        with pytest.raises(ValueError, match=r"rms_norm.x: want stride 1 in the last dimension, have 16"):
            ops.rms_norm(wide.T, guest.tensor(np.ones(2, np.float32)), 0.0)


def test_a_library_without_assignment_is_never_written(guest: Guest) -> None:
    x, y = (guest.tensor(np.ones((2, 8), np.float32)) for _ in range(2))
    if guest.mutable:
        ops.silu(x, out=y)
        return
    text = "want a tensor that may be written, have .*, which never may"
    with pytest.raises(ValueError, match=f"silu.out: {text}"):
        ops.silu(x, out=y)
    with pytest.raises(ValueError, match=f"fused_add_rmsnorm.x: {text}"):
        ops.fused_add_rmsnorm(x, y, guest.tensor(np.ones(8, np.float32)), 1e-6)


@pytest.mark.parametrize("library", ["paddle", "torch"])
@given(
    rows=st.integers(0, 5), columns=st.integers(1, 33), before=st.integers(0, 3), behind=st.integers(0, 3),
    step=st.integers(1, 3), kind=st.sampled_from(FLOATS),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_view_gives_numpys_bits(
    library: str, rows: int, columns: int, before: int, behind: int, step: int, kind: dt.DType
) -> None:
    """Sizes, offsets and row strides; made and given results; whichever way the call takes."""
    guest = next(g for g in GUESTS if g.name == library)
    guest.load()
    session, rng = current_session(), np.random.default_rng(rows * 100 + columns)
    base = rng.standard_normal((rows * step, before + columns + behind)).astype(kind.numpy())
    cut = (slice(None, None, step), slice(before, before + columns))
    weight = rng.standard_normal(columns).astype(kind.numpy())
    want = ops.rms_norm(base[cut], weight, 1e-6)
    x, w, out = guest.tensor(base)[cut], guest.tensor(weight), guest.tensor(np.zeros_like(want))
    assert on_host(session, ops.rms_norm(x, w, 1e-6)).tobytes() == want.tobytes()
    assert on_host(session, ops.rms_norm(x, w, 1e-6, out=out)).tobytes() == want.tobytes()


def test_refusals_read_the_same_on_both_ways(guest: Guest) -> None:
    if not guest.mutable:
        pytest.skip(f"{guest.name}: cannot be written")
    x, w, out = (guest.tensor(np.ones(s, np.float32)) for s in ((2, 8), (8,), (2, 8)))
    short = guest.tensor(np.ones(4, np.float32))
    for _ in range(3):
        with pytest.raises(ValueError, match=r"rms_norm.weight: want size 8 in dimension 0, have \[4\]"):
            ops.rms_norm(x, short, 1e-6, out=out)
        ops.rms_norm(x, w, 1e-6, out=out)
    with pytest.raises(TypeError, match=r"missing eps"):
        ops.rms_norm(x, w, out=out)
    with pytest.raises(TypeError, match=r"multiple values for argument 'out'"):
        ops.rms_norm(x, w, 1e-6, out, out=out)


def test_shapes_of_results_follow_every_call(guest: Guest, session: Session) -> None:
    for rows in (2, 3, 0, 5):
        x = np.full((rows, 8), 2, np.float32)
        got = on_host(session, ops.rms_norm(guest.tensor(x), guest.tensor(np.ones(8, np.float32)), 0.0))
        np.testing.assert_allclose(got, np.ones((rows, 8)), rtol=1e-6)
    with pytest.raises(ValueError, match=r"swiglu"):
        ops.swiglu(guest.tensor(np.ones((2, 7), np.float32)), None)


def test_results_belong_to_the_caller_alone(guest: Guest) -> None:
    x = guest.tensor(np.ones((2, 8), np.float32))
    for _ in ("long way", "short way", "short way"):
        result = weakref.ref(ops.silu(x))
        gc.collect()
        assert result() is None


def test_calls_are_counted_on_both_ways(guest: Guest, session: Session) -> None:
    before = session.ops.silu.calls
    x, out = (guest.tensor(np.ones((2, 8), np.float32)) for _ in range(2))
    for _ in range(4):
        ops.silu(x, out=out) if guest.mutable else ops.silu(x)
    assert session.ops.silu.calls == before + 4


def test_mixed_guests_return_the_first_ones_type(guest: Guest) -> None:
    x = guest.tensor(np.ones((2, 8), np.float32))
    for _ in range(2):
        assert type(ops.rms_norm(x, np.ones(8, np.float32), 1e-6)) is type(x)
        assert type(ops.rms_norm(from_numpy(np.ones((2, 8), np.float32)), x[0], 1e-6)) is Tensor


def test_a_tensor_of_a_type_the_catalogue_lacks_is_named(guest: Guest) -> None:
    with pytest.raises((TypeError, ValueError), match=r"silu.x: .*(complex|code 5)"):
        ops.silu(guest.tensor(np.ones((2, 2), np.float32)) * 1j)


class TestSessions:
    """A route belongs to the session it was found on."""

    def test_another_session_is_asked_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from fd_core.host import session as sessions

        torch = pytest.importorskip("torch", reason="torch is not installed")
        x, out = torch.ones(2, 8), torch.empty(2, 8)
        first, reference = current_session(), open_session("reference")
        for _ in range(2):
            ops.silu(x, out=out)
        counts = first.ops.silu.calls, reference.ops.silu.calls
        monkeypatch.setattr(sessions, "current", reference)
        ops.silu(x, out=out)
        assert (first.ops.silu.calls, reference.ops.silu.calls) == (counts[0], counts[1] + 1)


class TestGradients:
    """Ops have no backward pass: a tensor that wants a gradient is refused while one is recorded."""

    @pytest.mark.parametrize("library", ["torch", "paddle"])
    def test_refused_while_recording_taken_otherwise(self, library: str) -> None:
        guest = next(g for g in GUESTS if g.name == library)
        module = guest.load()
        x, out = (guest.tensor(np.ones((2, 8), np.float32)) for _ in range(2))
        ops.silu(x, out=out)
        ops.silu(x, out=out)  # the short way is known now
        x.stop_gradient = False
        if library == "torch":
            x.requires_grad_()
        with pytest.raises(TypeError, match=r"silu.x: want a tensor that exports DLPack.*detach"):
            ops.silu(x, out=out)
        with module.no_grad():
            assert ops.silu(x, out=out) is out
            assert type(ops.silu(x)) is type(x)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("way", ["long", "short"])
def test_traced_stand_ins_for_tensors_are_refused(way: str) -> None:
    """A sub-class that reroutes its library's operators may have no memory behind it."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    subclass = pytest.importorskip("torch._subclasses.fake_tensor")
    if way == "short":
        ops.silu(torch.ones(2, 8), out=torch.ones(2, 8))
    with subclass.FakeTensorMode():
        x = torch.ones(2, 8)
    with pytest.raises((TypeError, ValueError), match=r"silu.x"):
        ops.silu(x, out=torch.ones(2, 8))
