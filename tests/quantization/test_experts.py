"""Experts of mixture layers by every method: what the dense layers of one expert after the other give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from integer import Array, bound, int4_weight, int8_weight, make, normal

from fd_core.api import dtype as dt
from fd_core.api.dtype import DType
from fd_core.api.quant import ExpertMethod, ExpertSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy

METHODS = ["none", "wint8", "w8a8", "wint4", "w4a8"]
every_method = pytest.mark.parametrize("name", METHODS)
#: (hidden, intermediate): multiples of the tile (32 columns, 4 steps, a group, a block of 256) and not.
SHAPES = [(1, 1), (64, 32), (100, 37), (257, 48), (300, 160)]
#: Rows of each expert: none at all, one, a tile's, more than a pass holds, more than are worked on at once.
COUNTS = [[0], [1, 0, 3], [0, 2, 17, 1, 0, 140, 5], [1, 2100, 0, 3]]


def method_of(name: str, **config: Any) -> QuantMethod:
    if name != "none":
        return make(name, **config)
    make("wint8")  # skips where fd-cpu has no library
    from fd_cpu.platform import CPUPlatform
    from fd_cpu.quant import PackedLinear

    platform = CPUPlatform()
    return PackedLinear(platform.open(0), platform, None)


def weights(spec: ExpertSpec, seed: int = 0) -> list[dict[str, Array]]:
    """Each expert's matrices, outputs of about the inputs' size."""
    return [
        {
            name: (normal(seed + 2 * e + i, (m.out_features, m.in_features)) / m.in_features**0.5).astype(
                spec.dtype.numpy()
            )
            for i, (name, m) in enumerate(spec.matrices.items())
        }
        for e in range(spec.experts)
    ]


@dataclass
class Stack:
    """A layer's experts under test, and the plain matrices that they were made of."""

    method: QuantMethod
    experts: ExpertMethod
    spec: ExpertSpec
    plain: list[dict[str, Array]]
    packed: Mapping[str, Tensor]

    def __call__(self, x: Array, counts: list[int]) -> Array:
        out = np.full(x.shape, 7, x.dtype)
        ends = from_numpy(np.cumsum(counts))
        owners = from_numpy(np.repeat(np.arange(len(counts)), counts).astype(np.int32))
        self.experts.apply(from_numpy(x), ends, owners, self.spec, self.packed, from_numpy(out))
        return out


def stack(
    method: QuantMethod,
    hidden: int,
    inner: int,
    experts: int,
    kind: DType = dt.bfloat16,
    plain: list[dict[str, Array]] | None = None,
) -> Stack:
    spec = ExpertSpec(hidden, inner, experts, kind, dt.float32, "model.layers.0.mlp.experts")
    found, plain = method.experts(), plain or weights(spec)
    assert found is not None
    packed = {name: method.platform.empty(one) for name, one in found.packed_weights(spec).items()}
    for e in reversed(range(experts)):  # any order
        found.pack(spec, e, {name: from_numpy(m.copy()) for name, m in plain[e].items()}, packed)
    return Stack(method, found, spec, plain, packed)


def by_dense_layers(one: Stack, x: Array, counts: list[int]) -> Array:
    """One dense call after the other, over panels of each expert's own."""
    from fd_cpu import library

    out = np.empty_like(x)
    for e, end in enumerate(np.cumsum(counts)):
        rows, value = slice(end - counts[e], end), x[end - counts[e] : end]
        for name, linear in one.spec.matrices.items():
            packed = one.method.process_weights(linear, {"weight": from_numpy(one.plain[e][name])})
            result = np.empty((len(value), linear.out_features), x.dtype)
            one.method.apply(from_numpy(value), packed, None, from_numpy(result))
            value = result
            if name == "gate_up_proj":
                value = np.empty((len(result), one.spec.intermediate), x.dtype)
                library.swiglu(from_numpy(result), None, from_numpy(value))
        out[rows] = value
    return out


@every_method
@pytest.mark.parametrize(("hidden", "inner"), SHAPES)
@pytest.mark.parametrize("counts", COUNTS, ids=lambda c: ".".join(map(str, c)))
def test_bits_are_those_of_dense_layers(name: str, hidden: int, inner: int, counts: list[int]) -> None:
    one = stack(method_of(name), hidden, inner, len(counts))
    x = normal(1, (sum(counts), hidden))
    np.testing.assert_array_equal(one(x, counts), by_dense_layers(one, x, counts))


@every_method
@pytest.mark.parametrize("x_type", dt.FLOATS, ids=str)
@pytest.mark.parametrize("kind", dt.FLOATS, ids=str)
def test_types(name: str, x_type: DType, kind: DType) -> None:
    one = stack(method_of(name), 70, 40, 3, kind)
    x = normal(2, (9, 70), x_type)
    np.testing.assert_array_equal(one(x, [4, 0, 5]), by_dense_layers(one, x, [4, 0, 5]))


@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("name", ["wint4", "w4a8"])
def test_groups_and_zero_points(name: str, zero_point: bool, group: int) -> None:
    one = stack(method_of(name, group_size=group, zero_point=zero_point), 200, 130, 2)
    x = normal(3, (7, 200))
    np.testing.assert_array_equal(one(x, [3, 4]), by_dense_layers(one, x, [3, 4]))


def dequantised(one: Stack, expert: int, matrix: str) -> Array:
    """The weights [out, in] that an expert's codes stand for, float64."""
    linear = one.spec.matrices[matrix]
    parts = {n: one.packed[f"{matrix}.{n}"].select(expert) for n in one.method.stored_weights(linear)}
    size = (linear.out_features, linear.in_features)
    if "scale" in parts:
        codes, scale = int8_weight((parts["qweight"], parts["scale"]), *size)
        return codes * scale[:, None].astype(np.float64)
    codes, scale = int4_weight(parts["qweight"], *size, 64)
    return np.asarray(codes * np.repeat(scale, 64, axis=1)[:, : size[1]].astype(np.float64))


@pytest.mark.parametrize("name", ["wint8", "wint4"])
@pytest.mark.parametrize(("hidden", "inner"), SHAPES)
def test_codes_mean_what_dense_ones_do(name: str, hidden: int, inner: int) -> None:
    """Against float64: each product errs by a float32 chain, silu (slope below 1.1) carries that on."""
    counts = [2, 0, 19]
    one = stack(method_of(name), hidden, inner, len(counts))
    x = normal(4, (sum(counts), hidden))
    got, ends = one(x, counts), np.cumsum(counts)
    for e, end in enumerate(ends):
        rows = slice(end - counts[e], end)
        up, down = (dequantised(one, e, matrix) for matrix in one.spec.matrices)
        h, away = x[rows].astype(np.float64) @ up.T, bound(x[rows], up, hidden)
        gate, value = np.split(h, 2, axis=1)
        gate_away, value_away = np.split(away, 2, axis=1)
        silu = gate / (1 + np.exp(-gate))
        inner_away = 1.1 * gate_away * np.abs(value) + np.abs(silu) * value_away + gate_away * value_away
        middle = silu * value
        limit = bound(middle, down, inner) + (1.2 * inner_away + 1e-6 * np.abs(middle)) @ np.abs(down).T
        assert (np.abs(got[rows] - middle @ down.T) <= limit).all()


@every_method
def test_rows_do_not_depend_on_the_batch(name: str) -> None:
    """A row alone, beside others of its expert and beside other experts' has the same bits."""
    counts = [3, 0, 150, 29]
    one = stack(method_of(name), 130, 70, len(counts))
    x, ends = normal(5, (sum(counts), 130)), np.cumsum(counts)
    whole = one(x, counts)
    for e, end in enumerate(ends):
        for row in {int(end) - 1, int(end) - counts[e], int(end) - counts[e] // 2 - 1} if counts[e] else ():
            alone = [int(i == e) for i in range(len(counts))]
            assert one(x[row : row + 1], alone).tobytes() == whole[row].tobytes()


@every_method
def test_threads_do_not_change_a_bit(name: str) -> None:
    from fd_cpu import library

    counts = [1, 40, 0, 300]
    one = stack(method_of(name), 700, 300, len(counts))
    x = normal(6, (sum(counts), 700))
    want = one(x, counts)
    try:
        for threads in (1, 3, 7):
            library.set_threads(threads)
            assert one(x, counts).tobytes() == want.tobytes()
    finally:
        library.set_threads(library.thread_count())


@every_method
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinities_stay_in_their_rows_and_experts(name: str, value: float) -> None:
    counts = [2, 3, 2]
    clean = stack(method_of(name), 90, 40, 3, dt.float32)
    x = normal(7, (7, 90))
    want = clean(x, counts)
    spoilt = x.copy()
    spoilt[3, 5] = value
    got = clean(spoilt, counts)
    assert not np.isfinite(got[3]).any()
    np.testing.assert_array_equal(np.delete(got, 3, 0), np.delete(want, 3, 0))
    plain = [{name: matrix.copy() for name, matrix in one.items()} for one in clean.plain]
    plain[1]["down_proj"][17, 3] = value
    got = stack(method_of(name), 90, 40, 3, dt.float32, plain)(x, counts)
    assert not np.isfinite(got[2:5, 17]).any()
    got[2:5, 17] = want[2:5, 17]
    np.testing.assert_array_equal(got, want)


@every_method
def test_zeros_are_exact_and_rows_of_no_expert_too(name: str) -> None:
    one = stack(method_of(name), 40, 20, 2)
    x = normal(8, (6, 40))
    x[1] = 0
    got = one(x, [3, 1])  # the last two belong to nobody
    assert not got[[1, 4, 5]].any()
    assert got[[0, 2, 3]].any(1).all()


@every_method
def test_stored_stacks_are_taken_back_in_place(name: str) -> None:
    if name == "none":
        pytest.skip("plain weights are stored as they come")
    one = stack(method_of(name), 100, 40, 3)
    kept = {key: from_numpy(np.frombuffer(t.numpy().tobytes(), t.dtype.numpy()).reshape(t.shape))
            for key, t in reversed(one.packed.items())}  # fmt: skip
    again = make(name, is_quantized=True, forms={name: one.method.form})
    found = again.experts()
    assert found is not None
    assert found.stored
    adopted = found.adopt(one.spec, kept)
    assert {key: t.ptr for key, t in adopted.items()} == {key: t.ptr for key, t in kept.items()}
    x = normal(9, (4, 100))
    taken = Stack(again, found, one.spec, [], adopted)
    np.testing.assert_array_equal(taken(x, [1, 0, 3]), one(x, [1, 0, 3]))


@every_method
def test_refusals(name: str) -> None:
    one, x = stack(method_of(name), 64, 32, 2), normal(10, (3, 64))
    for counts, why in [([2, 2], r"ends: want rising sums up to the rows, have 4 for expert 1"),
                        ([2, -1], r"ends: want rising sums up to the rows, have 1 for expert 1"),
                        ([1, 1, 1], r"ends: want size 2")]:  # fmt: skip
        with pytest.raises(ValueError, match=why):
            one.experts.apply(
                from_numpy(x), from_numpy(np.cumsum(counts)), from_numpy(np.zeros(3, np.int32)), one.spec,
                one.packed, from_numpy(np.empty_like(x)),
            )  # fmt: skip
    wider = ExpertSpec(64, 80, 2, dt.bfloat16, dt.float32)
    with pytest.raises(ValueError, match="want size"):
        Stack(one.method, one.experts, wider, [], one.packed)(x, [1, 2])
    with pytest.raises(ValueError, match="want size"):
        one(normal(11, (3, 300)), [1, 2])
    with pytest.raises(TypeError, match="x: want float32, bfloat16 or float16"):
        one(np.ones((3, 64), np.int32), [1, 2])


def test_other_types_of_stacks_are_refused() -> None:
    from fd_cpu import library

    x, ends, out = normal(12, (1, 64)), np.array([1]), np.empty((1, 64), np.float32)
    int8 = [np.zeros((1, 2, 16, 32, 4), np.int8), np.ones((1, 64), np.float32)]
    down = [np.zeros((1, 2, 8, 32, 4), np.int8), np.ones((1, 64), np.float32)]
    call = [from_numpy(a) for a in (x, ends, *int8, *down)]
    library.experts_int8(*call, 32, from_numpy(out))
    assert not out.any()
    call[3] = from_numpy(np.ones((1, 64), np.float16))
    with pytest.raises(TypeError, match="scale: want dtype float32"):
        library.experts_int8(*call, 32, from_numpy(out))
    odd = from_numpy(np.zeros((1, 2, 1, 77), np.uint8))
    with pytest.raises(ValueError, match="want groups of 32, 64 or 128"):
        library.experts_int4(call[0], call[1], odd, odd, 32, from_numpy(out))
    both = [from_numpy(np.zeros((1, 2, 1, size), np.uint8)) for size in (64 + 1024, 96 + 1024)]
    with pytest.raises(ValueError, match="want zero points in both matrices or in neither"):
        library.experts_int4(call[0], call[1], *both, 32, from_numpy(out))
    panels = [from_numpy(np.zeros((1, 2, depth, 32), kind)) for depth, kind in ((64, "f4"), (32, "f2"))]
    with pytest.raises(TypeError, match="down: want dtype float32"):
        library.experts_packed(call[0], call[1], *panels, 32, from_numpy(out))


def test_specifications() -> None:
    spec = ExpertSpec(100, 37, 3, dt.bfloat16, dt.float32, "mlp.experts")
    up, down = spec.matrices.values()
    assert (up.in_features, up.out_features, up.prefix) == (100, 74, "mlp.experts.gate_up_proj")
    assert (down.in_features, down.out_features, down.bias) == (37, 100, False)
    found = method_of("wint8").experts()
    assert found is not None
    assert found.packed_weights(spec) == {
        "gate_up_proj.qweight": TensorSpec((3, 3, 25, 32, 4), dt.int8),
        "gate_up_proj.scale": TensorSpec((3, 74), dt.float32),
        "down_proj.qweight": TensorSpec((3, 4, 10, 32, 4), dt.int8),
        "down_proj.scale": TensorSpec((3, 100), dt.float32),
    }
