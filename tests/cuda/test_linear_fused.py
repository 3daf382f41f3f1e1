"""Linear layers that take a norm, a gate or an addition along: the bits of the ops one after another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("fd_cuda")
from fd_cuda import library
from fd_cuda.quant import WHOLE, int4_scale_spec, int4_spec, int8_spec

from fd_core.api import dtype as dt
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.host.session import Session
from tests.cuda.gpu import gpu_session

pytestmark = pytest.mark.device("cuda")
Array = np.ndarray[Any, Any]
HALVES = (dt.bfloat16.numpy(), dt.float16.numpy())
EPS = 1e-5
#: What is around an output, and in it before.
CANARY = 7.0


@pytest.fixture(scope="module")
def session() -> Session:
    return gpu_session("linear_int8_fused", "linear_int4_fused", "rms_norm", "swiglu")


@dataclass(frozen=True)
class Case:
    """`kind`: of weights; `columns` of the result, `depth` of x; `fold`: what comes after the product."""

    kind: str
    dtype: Any
    rows: int
    columns: int
    depth: int
    norm: bool = True
    fold: str = "none"
    bias: bool = False
    strided: bool = False
    seed: int = 0

    @property
    def gated(self) -> bool:
        return self.fold == "gate"

    @property
    def features(self) -> int:
        """Rows of W."""
        return self.columns * (2 if self.gated else 1)


GROUPS = {"int4-64": 64, "int4-128": 128, "int4-row": WHOLE}
KINDS = ("int8", *GROUPS)
INT8, INT4 = ("linear_int8", "linear_int8_fused"), ("linear_int4", "linear_int4_fused")
cases = st.builds(
    Case,
    st.sampled_from(KINDS),
    st.sampled_from(HALVES),
    st.integers(1, 8),
    st.integers(1, 20).map(lambda n: 16 * n),
    st.one_of(st.integers(1, 300), st.integers(1, 1000)).map(lambda n: 8 * n),
    st.booleans(),
    st.sampled_from(("none", "gate", "add")),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
#: Those of Llama-3-8B, of which every block has few tiles or many; rows too long to be eight in a block.
LARGE = [
    Case("int4-128", HALVES[0], 1, 6144, 4096),
    Case("int4-128", HALVES[0], 1, 4096, 4096, norm=False, fold="add"),
    Case("int4-128", HALVES[0], 1, 14336, 4096, fold="gate"),
    Case("int8", HALVES[0], 2, 14336, 4096, fold="gate"),
    Case("int8", HALVES[0], 8, 14336, 4096, fold="gate"),
    Case("int4-128", HALVES[1], 8, 4096, 14336, norm=False, fold="add"),
    Case("int8", HALVES[0], 8, 4096, 14336, fold="add", bias=True),
    Case("int8", HALVES[1], 3, 256, 14336, fold="gate"),
    Case("int4-128", HALVES[0], 1, 2048, 14336, fold="gate"),
    Case("int4-64", HALVES[1], 1, 4096, 28672, norm=False, fold="add", bias=True),
]


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


class Setup:
    """A case's tensors on the device, and both ways to the result."""

    def __init__(self, session: Session, case: Case, x: Array | None = None) -> None:
        self.session, self.case = session, case
        seed, kind = case.seed, case.dtype
        self.x = normal(seed, case.rows, case.depth, dtype=kind) if x is None else x
        weight = normal(seed + 1, case.features, case.depth) / np.float32(case.depth**0.5)
        self.weight = self.packed(session.platform.from_host(weight.astype(kind)))
        self.bias = self.put(normal(seed + 2, case.features, dtype=kind)) if case.bias else None
        self.norm = self.put(1 + normal(seed + 3, case.depth, dtype=kind) / 8) if case.norm else None
        self.before = normal(seed + 4, case.rows, case.columns, dtype=kind)
        self.plain, self.fused = INT8 if case.kind == "int8" else INT4

    def put(self, array: Array) -> Tensor:
        found: Tensor = self.session.platform.from_host(array.astype(self.case.dtype))
        return found

    def get(self, tensor: Tensor) -> Array:
        found: Array = self.session.platform.to_host(tensor)
        return found

    def packed(self, weight: Tensor) -> list[Tensor]:
        case, (n, k) = self.case, weight.shape
        if case.kind == "int8":
            specs = [int8_spec(n, k), TensorSpec((n,), dt.float32)]
        else:
            group = GROUPS[case.kind]
            specs = [int4_spec(n, k, group), int4_scale_spec(n, k, group)]
        made = [self.session.platform.from_host(np.zeros(s.shape, s.dtype.numpy())) for s in specs]
        library.function("pack_int8_weight" if case.kind == "int8" else "pack_int4_weight")(weight, *made)
        return made

    def inside(self, array: Array, left: int) -> tuple[Tensor, Tensor]:
        """`array` as columns of a wider matrix of CANARY, `left` from its edge; that matrix."""
        m, n = array.shape
        wide = np.full((m, n + 2 * left), CANARY, np.float32).astype(array.dtype)
        wide[:, left : left + n] = array
        whole = self.session.platform.from_host(wide)
        return whole.slice(left, left + n, 1), whole

    def run(self) -> tuple[Array, Array]:
        """The result, and what was written beside it."""
        case = self.case
        left = 8 if case.strided else 0
        x, _ = self.inside(self.x, left)
        held = self.before if case.fold == "add" else np.full_like(self.before, np.nan)
        out, whole = self.inside(held, left)
        ends = (self.norm, EPS, case.gated, case.fold == "add")
        library.function(self.fused)(x, *self.weight, self.bias, *ends, out)
        found = self.get(whole)
        columns = slice(left, left + case.columns)
        return found[:, columns], np.delete(found, columns, 1)

    def product(self) -> Array:
        """W norm(x) + bias by the separate kernels."""
        case, x = self.case, self.put(self.x)
        if self.norm is not None:
            normed = self.put(np.zeros_like(self.x))
            library.function("rms_norm")(x, self.norm, EPS, normed)
            x = normed
        y = self.put(np.zeros((case.rows, case.features)))
        library.function(self.plain)(x, *self.weight, self.bias, y)
        return self.get(y)

    def in_turn(self) -> Array:
        y = self.product()
        if self.case.fold == "add":
            return (y.astype(np.float32) + self.before.astype(np.float32)).astype(self.case.dtype)
        if not self.case.gated:
            return y
        out = self.put(np.zeros_like(self.before))
        library.function("swiglu")(self.put(y), None, out)
        return self.get(out)


def same(a: Array, b: Array) -> None:
    np.testing.assert_array_equal(a.view(np.uint16), b.view(np.uint16))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(case=Case("int4-64", HALVES[0], 1, 48, 8, bias=True, strided=True))
@example(case=Case("int8", HALVES[1], 8, 16, 72, fold="gate", bias=True))
@given(case=cases)
def test_bits_of_the_ops_in_turn(session: Session, case: Case) -> None:
    setup = Setup(session, case)
    got, beside = setup.run()
    same(got, setup.in_turn())
    assert (beside == CANARY).all()


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_bits_of_large_layers(session: Session, case: Case) -> None:
    setup = Setup(session, case)
    want = setup.in_turn()
    for _ in range(3):
        same(setup.run()[0], want)


@pytest.mark.parametrize("columns", [1, 17, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_tiles(session: Session, kind: str, columns: int) -> None:
    for fold in ("none", "add"):
        setup = Setup(session, Case(kind, HALVES[0], 3, columns, 136, fold=fold, bias=True))
        same(setup.run()[0], setup.in_turn())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_norm_of_the_sum_is_fused_add_rmsnorm(session: Session, kind: str, dtype: Any) -> None:
    """What a decoder block relies on: a residual that was added to here and normed by the next product."""
    setup = Setup(session, Case(kind, dtype, 5, 4096, 1024, norm=False, fold="add"))
    total, weight = setup.put(setup.run()[0]), setup.put(1 + normal(9, 4096) / 8)
    normed = setup.put(np.zeros_like(setup.before))
    library.function("rms_norm")(total, weight, EPS, normed)
    y, residual = setup.put(setup.product()), setup.put(setup.before)
    library.function("fused_add_rmsnorm")(y, residual, weight, EPS)
    same(setup.get(normed), setup.get(y))
    same(setup.get(total), setup.get(residual))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("fold", ["none", "gate", "add"])
@pytest.mark.parametrize("kind", KINDS)
def test_wild_values_stay_in_their_rows(session: Session, kind: str, fold: str, value: float) -> None:
    case = Case(kind, HALVES[0], 4, 64, 712, fold=fold, bias=True)
    x = normal(0, 4, 712, dtype=case.dtype)
    x[2, 700] = value
    setup = Setup(session, case, x)
    got, want = setup.run()[0], setup.in_turn()
    assert np.isnan(got[2].astype(np.float32)).all()
    np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))
    same(got[[0, 1, 3]], want[[0, 1, 3]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone(session: Session, kind: str) -> None:
    case = Case(kind, HALVES[0], 8, 96, 2056, fold="gate")
    among = Setup(session, case)
    alone = Setup(session, replace(case, rows=1), among.x[5:6])
    same(among.run()[0][5:6], alone.run()[0])


def call(setup: Setup, **changed: Any) -> None:
    case = setup.case
    args = {
        "x": setup.put(setup.x),
        "bias": setup.bias,
        "norm": setup.norm,
        "eps": EPS,
        "gated": case.gated,
        "add": case.fold == "add",
        "out": setup.put(setup.before),
    }
    x, bias, *rest = (args | changed).values()
    library.function(setup.fused)(x, *setup.weight, bias, *rest)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_calls_are_refused(session: Session, kind: str) -> None:
    setup = Setup(session, Case(kind, HALVES[0], 4, 64, 128, bias=True))
    put, ones = setup.session.platform.from_host, np.ones
    half = HALVES[0]
    refused: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, r"\.x: want at most 8 rows", {"x": put(ones((9, 128), half))}),
        (TypeError, r"\.x: want bfloat16 or float16", {"x": put(ones((4, 128), np.float32))}),
        (ValueError, r"\.x: want rows of a multiple of 8", {"x": put(ones((4, 100), half))}),
        (ValueError, r"\.norm: want size 128", {"norm": put(ones(64, half))}),
        (TypeError, r"\.norm: want dtype", {"norm": put(ones(128, np.float32))}),
        (ValueError, r"\.norm: want it at a 16", {"norm": put(ones(129, half)).slice(1, 129)}),
        (ValueError, r"\.eps: want >= 0", {"eps": -1.0}),
        (ValueError, "want gated or add, have both", {"gated": True, "add": True}),
        (TypeError, r"\.out: want dtype", {"add": True, "out": put(ones((4, 64), np.float32))}),
        (ValueError, r"\.out: want a multiple of 16", {"gated": True, "out": put(ones((4, 40), half))}),
        (ValueError, r"\.codes: want size", {"out": put(ones((4, 96), half))}),
        (ValueError, r"\.bias: want size 64", {"bias": put(ones(32, half))}),
        (ValueError, r"\.out: want size 4", {"out": put(ones((3, 64), half))}),
    ]
    for error, text, changed in refused:
        with pytest.raises(error, match=text):
            call(setup, **changed)
    shared = put(ones((4, 128), half))
    with pytest.raises(ValueError, match=r"\.out: want memory of its own"):
        call(setup, x=shared, out=shared.slice(0, 64, 1))


def test_float32_results_of_a_normed_product(session: Session) -> None:
    """As an output head gives them."""
    setup = Setup(session, Case("int8", HALVES[0], 2, 80, 512))
    out, normed, want = (session.platform.from_host(np.zeros(s, t)) for s, t in (
        ((2, 80), np.float32), ((2, 512), HALVES[0]), ((2, 80), np.float32)
    ))  # fmt: skip
    call(setup, out=out)
    library.function("rms_norm")(setup.put(setup.x), setup.norm, EPS, normed)
    library.function("linear_int8")(normed, *setup.weight, None, want)
    np.testing.assert_array_equal(setup.get(out), setup.get(want))


def test_no_rows(session: Session) -> None:
    setup = Setup(session, Case("int8", HALVES[0], 1, 64, 128))
    call(setup, x=setup.put(np.zeros((0, 128))), out=setup.put(np.zeros((0, 64))))
