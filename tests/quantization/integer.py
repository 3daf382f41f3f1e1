"""What the tests of integer methods share: a method under test and what its packed codes mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fd_core.api import dtype as dt
from fd_core.api.dtype import DType
from fd_core.api.quant import LinearSpec, QuantMethod
from fd_core.api.tensor import from_numpy

#: (K, N): multiples of the tile (32 columns, 4 steps, 64 of a group, 256 of a block) and not.
SHAPES = [(1, 1), (64, 32), (100, 33), (257, 95), (300, 160), (515, 40), (1030, 31)]
ROWS = (0, 1, 2, 3, 5, 7, 13, 17, 43, 130)
Array = np.ndarray[Any, Any]


def make(name: str, **config: Any) -> QuantMethod:
    """fd-cpu's method; skips the test where it has no library."""
    library = pytest.importorskip("fd_cpu.library", reason="fd-cpu is not installed")
    try:
        library.chosen()
    except RuntimeError as error:
        pytest.skip(str(error))
    from fd_cpu.platform import CPUPlatform
    from fd_cpu.quant_integer import METHODS

    platform = CPUPlatform()
    return {m.name: m for m in METHODS}[name](platform.open(0), platform, None, config)


def spec(depth: int, columns: int, kind: DType = dt.bfloat16) -> LinearSpec:
    return LinearSpec(depth, columns, True, kind, dt.float32, prefix="layers.0.mlp")


def normal(seed: int, shape: tuple[int, ...], kind: DType = dt.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(kind.numpy())


@dataclass
class Layer:
    """A method with one packed weight."""

    method: QuantMethod
    columns: int
    packed: Any

    def __call__(self, x: Array, bias: Array | None = None, out: DType = dt.float32) -> Array:
        result = np.full((len(x), self.columns), 7, out.numpy())
        shift = None if bias is None else from_numpy(bias)
        self.method.apply(from_numpy(x), self.packed, shift, from_numpy(result))
        return result


def layer(method: QuantMethod, weight: Array) -> Layer:
    columns, depth = weight.shape
    kind = dt.dtype(weight.dtype.name)
    source = weight.copy()
    packed = method.process_weights(spec(depth, columns, kind), {"weight": from_numpy(source)})
    source[...] = 1  # packed once: the source may be gone
    return Layer(method, columns, packed)


def int8_weight(packed: Any, columns: int, depth: int) -> tuple[Array, Array]:
    """Codes [N, K] and scales [N] as quant_panels.h describes them."""
    panels, scale = packed
    codes = panels.numpy().transpose(0, 2, 1, 3).reshape(panels.shape[0] * 32, -1)
    assert not codes[:, depth:].any()
    return codes[:columns, :depth].copy(), scale.numpy().copy()


def int4_weight(packed: Any, columns: int, depth: int, group: int) -> tuple[Array, Array]:
    """Codes, less zero points if there are any, [N, K] and scales [N, groups] as quant_panels.h describes
    them."""
    codes, zeros, scales = int4_parts(packed, group)
    assert not codes[:, depth:].any()
    return (codes - np.repeat(zeros, group, axis=1))[:columns, :depth], scales[:columns]


def int4_parts(packed: Any, group: int) -> tuple[Array, Array, Array]:
    """Codes [N, K], zero points and scales [N, groups], all filled up to whole panels and groups."""
    raw = packed.numpy()
    panels, groups, nbytes = raw.shape
    header = nbytes - 16 * group
    zeros = raw[:, :, 64:96].view(np.int8) if header == 96 else np.zeros((panels, groups, 32), np.int8)
    scales = raw[:, :, :64].copy().view(dt.bfloat16.numpy()).astype(np.float32)
    scales = scales.reshape(panels, groups, 16, 2).transpose(0, 3, 2, 1).reshape(panels * 32, groups)
    both = raw[:, :, header:].reshape(panels, groups, group // 4, 16, 4)
    nibbles = np.stack([both & 15, both >> 4], axis=1).astype(
        np.int8
    )  # panels, half, groups, quads, lane, k
    codes = nibbles.transpose(0, 1, 4, 2, 3, 5).reshape(panels * 32, groups * group)
    zeros = zeros.transpose(0, 2, 1).reshape(panels * 32, groups).astype(np.int16)
    return (codes ^ 8) - 8, zeros, scales


def token_codes(x: Array, group: int) -> tuple[Array, Array]:
    """Codes [M, K] and steps [M, K] of rows of floats: a group's absmax / 127, nearest, ties to even."""
    rows, depth = x.shape
    wide = np.pad(x.astype(np.float32), ((0, 0), (0, -depth % group)))
    wide = wide.reshape(rows, wide.shape[1] // group, group)
    most = np.abs(wide).max(2, keepdims=True, initial=0)
    inverse = np.divide(np.float32(127), most, where=most > 0, out=np.zeros_like(most))
    codes, steps = np.rint(wide * inverse), np.broadcast_to(most / np.float32(127), wide.shape)
    return tuple(
        a.reshape(rows, -(-depth // group) * group)[:, :depth].astype(np.float64) for a in (codes, steps)
    )


def bound(x: Array, weight: Array, steps: int) -> Array:
    """Of a float32 chain of `steps` products against the exact sum, and the last rounding."""
    size = np.abs(x).astype(np.float64) @ np.abs(weight).astype(np.float64).T
    return (steps + 4) * 2.0**-24 * size + 1e-30


def check_rows_alone(one: Layer, depth: int) -> None:
    x = normal(5, (1100, depth))
    whole = one(x)
    for rows in (1, 2, 3, 4, 6, 7, 8, 12, 13, 14, 15, 23, 24, 25, 28, 57, 129, 513):
        assert one(x[:rows]).tobytes() == whole[:rows].tobytes(), rows
        assert one(x[-rows:]).tobytes() == whole[-rows:].tobytes(), rows


def check_threads(one: Layer, depth: int) -> None:
    from fd_cpu import library

    x = normal(7, (40, depth))
    want = [one(x[:rows]) for rows in (1, 5, 40)]
    try:
        for threads in (1, 3, 7):
            library.set_threads(threads)
            for rows, value in zip((1, 5, 40), want, strict=True):
                assert one(x[:rows]).tobytes() == value.tobytes()
    finally:
        library.set_threads(library.thread_count())


def check_what_is_not_finite(one: Layer, clean: Layer, bad_column: int, depth: int) -> None:
    """`one` has a NaN or an infinity in a row of its weight, `clean` does not."""
    x = normal(9, (4, depth))
    others = np.arange(one.columns) != bad_column
    got = one(x)
    assert np.isnan(got[:, bad_column]).all()
    np.testing.assert_array_equal(got[:, others], clean(x)[:, others])
    for value in (np.nan, np.inf, -np.inf):
        spoilt = x.copy()
        spoilt[2, 3] = value
        result = clean(spoilt)
        assert not np.isfinite(result[2]).any()
        np.testing.assert_array_equal(np.delete(result, 2, 0), np.delete(clean(x), 2, 0))


def check_zeros(one: Layer, zero_column: int, depth: int) -> None:
    x, bias = normal(11, (3, depth)), normal(12, (one.columns,))
    x[1] = 0
    got = one(x, bias)
    np.testing.assert_array_equal(got[1], bias)
    np.testing.assert_array_equal(got[:, zero_column], np.repeat(bias[zero_column], 3))
