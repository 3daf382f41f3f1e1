"""How checkpoints hold codes: each format against bytes put together here, one code after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from integer import make, spec

from fd_core.api.quant import Grid
from fd_core.api.tensor import from_numpy
from fd_core.quantization.codes import Codes, rounded_codes
from fd_core.quantization.config import QuantError
from fd_core.quantization.formats import FORMATS
from fd_core.quantization.panels import Int4Panels, Int4ZeroPanels, Int8Panels, Panels

Array = np.ndarray[Any, Any]
ZEROS = (-128, 127)
groups = pytest.mark.parametrize("group", [32, 64, 128, 0])


def made_codes(columns: int, depth: int, grid: Grid, seed: int = 0) -> Codes:
    """Codes, bfloat16 scales and zero points over all of a grid."""
    rng = np.random.default_rng(seed)
    count = -(-depth // grid.group) if grid.group else 1
    code = rng.integers(grid.low, grid.high + 1, (columns, depth)).astype(np.int8)
    scale = rng.standard_normal((columns, count)).astype(ml_dtypes.bfloat16).astype(np.float32)
    zero = None
    if grid.zeros:
        zero = rng.integers(grid.zeros[0], grid.zeros[1] + 1, (columns, count)).astype(np.int8)
    return Codes(code, scale, zero)


def same(found: Codes, wanted: Codes) -> None:
    np.testing.assert_array_equal(found.code, wanted.code)
    np.testing.assert_array_equal(found.scale, wanted.scale)
    assert (found.zero is None) == (wanted.zero is None)
    if wanted.zero is not None:
        np.testing.assert_array_equal(found.zero, wanted.zero)


# -- panels ------------------------------------------------------------------------------------------


@groups
@pytest.mark.parametrize("form", [Int4Panels, Int4ZeroPanels])
@pytest.mark.parametrize(("columns", "depth"), [(1, 4), (33, 100), (64, 256), (70, 130)])
def test_int4_panels_are_those_of_the_kernels(
    columns: int, depth: int, form: type[Panels], group: int
) -> None:
    """What the CPU's packer makes of the weight, bit for bit, and back."""
    zeros = form is Int4ZeroPanels
    grid = Grid(-8, 7, group, ZEROS if zeros else None)
    codes = made_codes(columns, depth, grid)
    given_steps = {"weight": codes.weight(group), "scale": codes.scale}
    if codes.zero is not None:
        given_steps["zero"] = codes.zero.astype(np.float32)
    method = make("wint4", group_size=group or -1, zero_point=zeros)
    host = {name: from_numpy(np.ascontiguousarray(array)) for name, array in given_steps.items()}
    packed = method.process_weights(spec(depth, columns), host).numpy()
    own = form(grid)
    (wanted,) = own.tensors(columns, depth).values()
    assert (wanted.shape, wanted.dtype.name) == (packed.shape, packed.dtype.name)
    np.testing.assert_array_equal(own.encode(codes)["qweight"], packed)
    same(own.decode({"qweight": packed}, columns, depth), codes)


@pytest.mark.parametrize(("columns", "depth"), [(1, 1), (33, 100), (64, 256)])
def test_int8_panels_are_those_of_the_kernels(columns: int, depth: int) -> None:
    weight = np.random.default_rng(1).standard_normal((columns, depth)).astype(np.float32)
    packed, scale = make("wint8").process_weights(spec(depth, columns), {"weight": from_numpy(weight)})
    own = Int8Panels(Grid(-128, 127, 0))
    stored = {"qweight": packed.numpy(), "scale": scale.numpy()}
    codes = own.decode(stored, columns, depth)
    steps = np.abs(weight).max(1, keepdims=True) / 127
    assert (np.abs(codes.weight(0) - weight) <= 0.501 * steps).all()
    for name, array in own.encode(codes).items():
        np.testing.assert_array_equal(array, stored[name])


# -- words -------------------------------------------------------------------------------------------


def words(nibbles: Array, order: tuple[int, ...] = tuple(range(8)), bits: int = 4) -> Array:
    """[..., n] unsigned codes -> int32 [..., n * bits / 32]: place i of a word has element order[i]."""
    each = 32 // bits
    wide = nibbles.astype(np.int64).reshape(*nibbles.shape[:-1], -1, each)
    out = np.zeros(wide.shape[:-1], np.int64)
    for place in range(each):
        out |= wide[..., order[place]] << (bits * place)
    return out.astype(np.uint32).view(np.int32)


def pack_quantized(codes: Codes, bits: int = 4) -> dict[str, Array]:
    half, each = 1 << (bits - 1), 32 // bits
    order = tuple(range(each))
    found = {
        "weight_packed": words(codes.code.astype(int) + half, order, bits),
        "weight_scale": codes.scale,
        "weight_shape": np.array(codes.code.shape, np.int64),
    }
    if codes.zero is not None:
        found["weight_zero_point"] = words(codes.zero.T.astype(int) + half, order, bits).T
    return found


def zeros_of(codes: Codes) -> Array:
    """[groups, out], from 0 on."""
    return (np.zeros(codes.scale.shape, int) if codes.zero is None else codes.zero.astype(int)).T + 8


def awq(codes: Codes) -> dict[str, Array]:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": words(codes.code.T.astype(int) + 8, order),
        "qzeros": words(zeros_of(codes), order),
        "scales": codes.scale.T,
    }


def gptq(codes: Codes, off: int = 1) -> dict[str, Array]:
    depth = codes.code.shape[1]
    group = -(-depth // codes.scale.shape[1])
    return {
        "qweight": np.ascontiguousarray(words(codes.code.astype(int) + 8).T),
        "qzeros": words((zeros_of(codes) - off) & 15),
        "scales": codes.scale.T,
        "g_idx": np.arange(depth, dtype=np.int32) // group,
    }


def gptq_v2(codes: Codes) -> dict[str, Array]:
    return gptq(codes, 0)


WRITERS: dict[str, Callable[[Codes], dict[str, Array]]] = {
    "pack-quantized": pack_quantized, "awq": awq, "gptq": gptq, "gptq_v2": gptq_v2,
}  # fmt: skip
writers = pytest.mark.parametrize("name", WRITERS)


@writers
@given(
    columns=st.integers(1, 6).map(lambda n: 8 * n),
    count=st.integers(1, 3),
    group=st.sampled_from([8, 32, 0]),
    zeros=st.booleans(),
    seed=st.integers(0, 99),
)
def test_words(name: str, columns: int, count: int, group: int, zeros: bool, seed: int) -> None:
    # gptq's 0 .. 15 less one would begin at -1: its writers stay above.
    range_of_zeros = (-7, 7) if name == "gptq" else (-8, 7)
    grid = Grid(-8, 7, group, range_of_zeros if zeros else None)
    codes = made_codes(columns, 32 * count, grid, seed)
    stored = WRITERS[name](codes)
    form = FORMATS[name](grid)
    wanted = form.tensors(columns, 32 * count)
    assert {n: one.shape for n, one in wanted.items()} == {n: a.shape for n, a in stored.items()}
    assert all(stored[n].dtype == one.dtype.numpy() for n, one in wanted.items())
    found = form.decode(stored, columns, 32 * count)
    found.check(grid, name)
    same(found, codes)


def test_int8_words() -> None:
    grid = Grid(-128, 127, 0, by_effect=False)
    codes = made_codes(16, 64, grid)
    same(FORMATS["pack-quantized"](grid).decode(pack_quantized(codes, 8), 16, 64), codes)
    plain = {"weight": codes.code, "weight_scale": codes.scale}
    same(FORMATS["int-quantized"](grid).decode(plain, 16, 64), codes)


def test_groups_out_of_order_are_refused() -> None:
    grid = Grid(-8, 7, 32)
    stored = gptq(made_codes(8, 64, grid))
    stored["g_idx"] = stored["g_idx"][::-1].copy()
    with pytest.raises(QuantError, match=r"gptq: want groups of neighbouring inputs.*desc_act false"):
        FORMATS["gptq"](grid).decode(stored, 8, 64)


@pytest.mark.parametrize("name", ["awq", "gptq"])
def test_zero_points_where_none_are_announced(name: str) -> None:
    stored = WRITERS[name](made_codes(8, 64, Grid(-8, 7, 32, (-7, 7))))
    with pytest.raises(QuantError, match=f"{name}: want no zero points, as the configuration says"):
        FORMATS[name](Grid(-8, 7, 32)).decode(stored, 8, 64)


def test_another_shape_is_refused() -> None:
    grid = Grid(-8, 7, 32)
    stored = pack_quantized(made_codes(8, 64, grid))
    stored["weight_shape"] = np.array([8, 60])
    with pytest.raises(QuantError, match=r"want weight_shape \[8, 64\], have \[8, 60\]"):
        FORMATS["pack-quantized"](grid).decode(stored, 8, 64)


# -- numbers -----------------------------------------------------------------------------------------


@groups
@pytest.mark.parametrize("zeros", [None, ZEROS])
@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_codes_survive_multiplication(group: int, zeros: tuple[int, int] | None, kind: Any) -> None:
    grid = Grid(-8, 7, group, zeros)
    codes = made_codes(17, 200, grid)
    scale = np.abs(codes.scale).astype(kind).astype(np.float32)
    codes = Codes(codes.code, np.maximum(scale, np.float32(2.0**-14)), codes.zero)
    weight = codes.weight(group)
    zero = np.zeros(codes.scale.shape) if codes.zero is None else codes.zero
    at = np.arange(200) // (group or 200)
    exact = (codes.code - zero.astype(np.float64)[:, at]) * codes.scale.astype(np.float64)[:, at]
    np.testing.assert_allclose(weight, exact, rtol=2.0**-23)
    given_zero = None if codes.zero is None else codes.zero.astype(np.float32)
    same(rounded_codes(weight, codes.scale, given_zero, grid), codes)


def test_what_a_grid_does_not_hold_is_refused() -> None:
    codes = made_codes(8, 64, Grid(-8, 7, 32, (-100, 100)))
    codes.check(Grid(-8, 7, 32, (-128, 127)), "layer")
    with pytest.raises(QuantError, match=r"layer: want zero points from -8 to 7, have -\d+ to \d+; fix:"):
        codes.check(Grid(-8, 7, 32, (-8, 7)), "layer")
    with pytest.raises(QuantError, match="layer: want codes from -7 to 7, have -8 to 7; fix: convert"):
        codes.check(Grid(-7, 7, 32, (-128, 127)), "layer")
