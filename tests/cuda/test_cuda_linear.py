"""What the conformance kit's cases do not reach in the linear kernels: rows on tensor cores, how many there
are, cuBLASLt, and the packed weights of the quantisation methods."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("fd_cuda")
from fd_cuda import library
from fd_cuda.quant import INTEGERS

from fd_core.api import dtype as dt
from fd_core.api.quant import LinearSpec
from fd_core.host.session import Session
from tests.cuda.gpu import gpu_session

pytestmark = pytest.mark.device("cuda")
Array = np.ndarray[Any, Any]
HALVES = [dt.bfloat16.numpy(), dt.float16.numpy()]
halves = pytest.mark.parametrize("dtype", HALVES, ids=str)
#: (N, K): whole tiles and windows, and parts of them.
SHAPES = [(16, 8), (97, 40), (100, 1024), (33, 264), (1, 2056), (640, 4096), (48, 14336)]
#: Sums of K <= 14336 products near 1 in all, in float32 parts of K / 8: sqrt(K) * 2^-24 and the tensor
#: cores' truncation (two ulps a step of sixteen) stay below.
ATOL = 3e-5
#: From so many products on, more than eight rows are cuBLASLt's (linear.h).
LIBRARY = 1 << 24


@pytest.fixture(scope="module")
def session() -> Session:
    return gpu_session("linear")


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def weight_of(columns: int, depth: int, dtype: Any) -> Array:
    return (normal(1, columns, depth) / np.float32(depth**0.5)).astype(dtype)


def call(session: Session, name: str, x: Array, packed: list[Any], bias: Array | None) -> Array:
    """Float32 results of an export."""
    put = session.platform.from_host
    columns = len(bias) if bias is not None else packed[0].shape[0]
    out = put(np.full((len(x), columns), 7, np.float32))
    library.function(name)(put(x), *packed, None if bias is None else put(bias), out)
    return session.platform.to_host(out)


def exact(x: Array, weight: Array, bias: Array | None = None) -> Array:
    total = x.astype(np.float64) @ weight.astype(np.float64).T
    return total if bias is None else total + bias.astype(np.float64)


@halves
@pytest.mark.parametrize(("columns", "depth"), SHAPES)
def test_few_rows(session: Session, columns: int, depth: int, dtype: Any) -> None:
    """Right, and a row's bits are those that it has alone, among eight, and among seventy."""
    weight, x = weight_of(columns, depth, dtype), normal(2, 70, depth, dtype=dtype)
    bias = normal(3, columns, dtype=dtype)
    packed = [session.platform.from_host(weight)]
    alone = call(session, "linear", x[5:6], packed, bias)
    np.testing.assert_allclose(alone, exact(x[5:6], weight, bias), rtol=1e-5, atol=ATOL)
    for count in (n for n in (8, 17, 64, 70) if n <= 8 or n * columns * depth < LIBRARY):
        among = call(session, "linear", x[:count], packed, bias)
        np.testing.assert_array_equal(among[5:6], alone)
        np.testing.assert_allclose(among, exact(x[:count], weight, bias), rtol=1e-5, atol=ATOL)


@halves
def test_many_rows(session: Session, dtype: Any) -> None:
    """Enough products for cuBLASLt, where it is installed."""
    weight, x, bias = (
        weight_of(520, 1024, dtype),
        normal(2, 96, 1024, dtype=dtype),
        normal(3, 520, dtype=dtype),
    )
    packed = [session.platform.from_host(weight)]
    for shift in (None, bias, bias.astype(np.float32)):
        got = call(session, "linear", x, packed, shift)
        np.testing.assert_allclose(got, exact(x, weight, shift), rtol=1e-5, atol=ATOL)


def make(session: Session, name: str, weight: Array, **config: Any) -> tuple[Any, list[Any]]:
    chosen = next(m for m in INTEGERS if m.name == name)
    info = session.platform.open(0)
    try:
        method = chosen(info, session.platform, session.ops, config)
    except AttributeError as error:
        pytest.skip(str(error))
    columns, depth = weight.shape
    kind = dt.dtype(weight.dtype.name)
    spec = LinearSpec(depth, columns, False, kind, dt.bfloat16, prefix="layer")
    return method, list(method.process_weights(spec, {"weight": session.platform.from_host(weight)}))


def int8_weight(session: Session, packed: list[Any], columns: int, depth: int) -> Array:
    """What the codes mean, by packed_weights.cuh's description."""
    codes, scales = (session.platform.to_host(t) for t in packed)
    row, k = np.arange(16)[:, None], np.arange(64)[None]
    lane, word = row % 8 * 4 + k % 32 // 8, 2 * (k % 8 // 4) + k % 4 // 2
    at = (k // 32 * 32 + lane) * 16 + word * 4 + k % 2 * 2 + row // 8
    wide = codes[:, :, at].transpose(0, 2, 1, 3).reshape(16 * codes.shape[0], -1)
    return wide[:columns, :depth].astype(np.float64) * scales[:, None]


def int4_codes(codes: Array, window: int) -> Array:
    """Tiles, windows, rows and steps of k: codes from -8 on."""
    row, k = np.arange(16)[:, None], np.arange(window)[None]
    lane, word = row % 8 * 4 + k % 32 // 8, 2 * (k % 64 // 32) + k % 8 // 4
    nibble = k % 4 // 2 * 2 + k % 2 * 4 + row // 8
    byte = codes[:, :, (k // 64 * 32 + lane) * 16 + word * 4 + nibble // 2]
    return ((byte >> (nibble % 2 * 4)) & 15).astype(np.float64) - 8


def int4_weight(session: Session, packed: list[Any], columns: int, depth: int, group: int) -> Array:
    """`group` -1: one scale per output."""
    codes, scales = (session.platform.to_host(t) for t in packed)
    steps = int4_codes(codes, 128 if group == -1 else group)
    if group != -1:
        pairs = scales.astype(np.float64).reshape(*scales.shape[:2], 8, 2)
        steps *= pairs.swapaxes(2, 3).reshape(scales.shape)[..., None]
    real = steps.transpose(0, 2, 1, 3).reshape(16 * codes.shape[0], -1)[:columns, :depth]
    return real * scales[:, None] if group == -1 else real


def check_packed(session: Session, name: str, packed: list[Any], real: Array, dtype: Any) -> None:
    columns, depth = real.shape
    x, bias = normal(2, 130, depth, dtype=dtype), normal(3, columns, dtype=dtype)
    alone = call(session, name, x[5:6], packed, bias)
    for count in (8, 9, 16, 17, 33, 70, 128):
        got = call(session, name, x[:count], packed, bias)
        np.testing.assert_array_equal(got[5:6], alone)
        np.testing.assert_allclose(got, exact(x[:count], real, bias), rtol=2e-5, atol=ATOL)
    # More rows go over weights of the 16-bit type: each is rounded once, by at most 2^-8 or 2^-11 of it.
    many = call(session, name, x, packed, bias)
    loose = np.abs(x.astype(np.float64)) @ np.abs(real).T * 2.0 ** (-8 if dtype == HALVES[0] else -11)
    assert (np.abs(many - exact(x, real, bias)) <= loose + ATOL).all()


@halves
@pytest.mark.parametrize(("columns", "depth"), SHAPES)
def test_wint8(session: Session, columns: int, depth: int, dtype: Any) -> None:
    weight = weight_of(columns, depth, dtype)
    _, packed = make(session, "wint8", weight)
    real = int8_weight(session, packed, columns, depth)
    steps = np.abs(weight.astype(np.float64)).max(1, keepdims=True) / 127
    assert (np.abs(real - weight.astype(np.float64)) <= 0.5001 * steps).all()
    check_packed(session, "linear_int8", packed, real, dtype)


def nearest_loss(weight: Array, group: int) -> float:
    """Squared error of codes -7 .. 7 under a scale of absmax / 7 for every group of inputs."""
    columns, depth = weight.shape
    wide = np.zeros((columns, -(-depth // group), group))
    wide.reshape(columns, -1)[:, :depth] = weight
    steps = np.abs(wide).max(2, keepdims=True) / 7
    nearest = np.rint(wide / np.where(steps > 0, steps, 1)) * steps
    return float(np.square(nearest - wide).sum())


@halves
@pytest.mark.parametrize("group", [64, 128, -1])
@pytest.mark.parametrize(("columns", "depth"), SHAPES)
def test_wint4(session: Session, columns: int, depth: int, group: int, dtype: Any) -> None:
    weight = weight_of(columns, depth, dtype)
    _, packed = make(session, "wint4", weight, group_size=group)
    real = int4_weight(session, packed, columns, depth, group)
    # The scale of the bound is not rounded to bfloat16.
    assert np.square(real - weight).sum() <= 1.01 * nearest_loss(weight, depth if group == -1 else group)
    check_packed(session, "linear_int4", packed, real, dtype)


@halves
@pytest.mark.parametrize("rows", [1, 3, 9, 65, 300])
def test_w8a8(session: Session, rows: int, dtype: Any) -> None:
    """Both sides' codes are sums of exact products; the last step is float32."""
    weight, x, bias = (
        weight_of(640, 1040, dtype),
        normal(2, rows, 1040, dtype=dtype),
        normal(3, 640, dtype=dtype),
    )
    method, packed = make(session, "w8a8", weight)
    codes, scales = (session.platform.to_host(t).astype(np.float64) for t in packed)
    wide = x.astype(np.float32)
    top = np.abs(wide).max(1, keepdims=True)
    steps = np.rint(wide * (np.float32(127) / top)).astype(np.float64)
    want = steps @ codes.T * (top / np.float32(127)).astype(np.float64) * scales + bias.astype(np.float64)
    got = call(session, method.kernel, x, packed, bias)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["wint8", "wint4", "w8a8"])
def test_zeros_and_empty_batches(session: Session, name: str) -> None:
    weight = weight_of(50, 64, HALVES[0])
    weight[33] = 0
    method, packed = make(session, name, weight)
    bias = normal(3, 50, dtype=HALVES[0])
    got = call(session, method.kernel, normal(2, 4, 64, dtype=HALVES[0]), packed, bias)
    np.testing.assert_array_equal(got[:, 33], np.full(4, bias[33], np.float32))
    assert call(session, method.kernel, normal(2, 0, 64, dtype=HALVES[0]), packed, bias).shape == (0, 50)


@pytest.mark.parametrize("name", ["wint8", "wint4", "w8a8"])
def test_wrong_inputs_are_refused(session: Session, name: str) -> None:
    method, packed = make(session, name, weight_of(50, 64, HALVES[0]))
    bias = normal(3, 50, dtype=HALVES[0])
    with pytest.raises(TypeError, match=r"\.x: want bfloat16 or float16, have float32"):
        call(session, method.kernel, normal(2, 4, 64), packed, bias)
    with pytest.raises(ValueError, match=r"\.codes: want size"):
        call(session, method.kernel, normal(2, 4, 256, dtype=HALVES[0]), packed, bias)
    wrong = session.platform.from_host(session.platform.to_host(packed[1]).astype(np.float16))
    with pytest.raises(TypeError, match=r"\.scales: want dtype"):
        call(session, method.kernel, normal(2, 4, 64, dtype=HALVES[0]), [packed[0], wrong], bias)
