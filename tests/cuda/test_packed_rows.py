"""Packed weights between decoding and prefill, where kernels take turns: rows have the bits that they have
eight at a time, whatever the shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
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
GROUPS = {"int4-64": 64, "int4-128": 128, "int4-row": WHOLE}
#: What is around x and an output, and in the output before.
CANARY = 7.0
#: More rows go over weights of the 16-bit type.
MOST = 128


@pytest.fixture(scope="module")
def session() -> Session:
    return gpu_session("linear_int8", "linear_int4", "pack_int8_weight", "pack_int4_weight")


@dataclass(frozen=True)
class Case:
    """`margin`: columns around x and the output."""

    kind: str
    dtype: Any
    rows: int
    columns: int
    depth: int
    bias: bool = False
    margin: int = 0
    seed: int = 0


cases = st.builds(
    Case,
    st.sampled_from(("int8", *GROUPS)),
    st.sampled_from(HALVES),
    st.one_of(st.sampled_from((16, 17, 24, 32, 33, 64, 65, 96, 97, MOST)), st.integers(9, MOST)),
    st.one_of(st.integers(1, 600), st.integers(1, 9000)),
    st.one_of(st.integers(1, 100), st.integers(1, 300)).map(lambda n: 8 * n),
    st.booleans(),
    st.sampled_from((0, 8)),
    st.integers(0, 99),
)
#: As many tiles as keep a device busy without sharing K, twice as many, and the layers of Llama-3-8B.
LARGE = [
    Case("int4-128", HALVES[0], 48, 17000, 136, bias=True),
    Case("int4-64", HALVES[1], 33, 34000, 72),
    Case("int8", HALVES[0], 96, 17000, 72),
    Case("int4-row", HALVES[1], 128, 9000, 264),
    Case("int4-128", HALVES[1], 24, 4096, 14336),
    Case("int4-128", HALVES[0], 100, 4096, 4096),
    Case("int8", HALVES[1], 64, 6144, 4096, bias=True),
    Case("int4-64", HALVES[0], 32, 14336, 4096, margin=8),
]


def packed(session: Session, case: Case, weight: Array) -> list[Tensor]:
    shape = case.columns, case.depth
    if case.kind == "int8":
        specs = int8_spec(*shape), TensorSpec((case.columns,), dt.float32)
    else:
        specs = int4_spec(*shape, GROUPS[case.kind]), int4_scale_spec(*shape, GROUPS[case.kind])
    tensors = [session.platform.empty(spec) for spec in specs]
    packer = "pack_int8_weight" if case.kind == "int8" else "pack_int4_weight"
    library.function(packer)(session.platform.from_host(weight), *tensors)
    return tensors


def product(session: Session, case: Case, x: Array, tensors: list[Tensor], bias: Array | None) -> Array:
    """Float32 results; nothing beside them is written."""
    put, margin = session.platform.from_host, case.margin
    wide_x = np.full((len(x), case.depth + 2 * margin), CANARY, case.dtype)
    wide_x[:, margin : margin + case.depth] = x
    out = put(np.full((len(x), case.columns + 2 * margin), CANARY, np.float32))
    library.function("linear_int8" if case.kind == "int8" else "linear_int4")(
        put(wide_x).slice(margin, margin + case.depth, 1),
        *tensors,
        None if bias is None else put(bias),
        out.slice(margin, margin + case.columns, 1),
    )
    found = session.platform.to_host(out)
    inside = slice(margin, margin + case.columns)
    assert (np.delete(found, np.arange(case.columns) + margin, 1) == CANARY).all()
    return found[:, inside]


def check(session: Session, case: Case) -> None:
    rng = np.random.default_rng(case.seed)
    weight = rng.standard_normal((case.columns, case.depth), np.float32) / np.float32(case.depth**0.5)
    x = rng.standard_normal((case.rows, case.depth), np.float32).astype(case.dtype)
    bias = rng.standard_normal(case.columns, np.float32).astype(case.dtype) if case.bias else None
    tensors = packed(session, case, weight.astype(case.dtype))
    eights = [product(session, case, x[i : i + 8], tensors, bias) for i in range(0, case.rows, 8)]
    np.testing.assert_array_equal(product(session, case, x, tensors, bias), np.concatenate(eights))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases)
def test_bits_of_eight_rows_at_a_time(session: Session, case: Case) -> None:
    check(session, case)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_layers(session: Session, case: Case) -> None:
    check(session, case)
