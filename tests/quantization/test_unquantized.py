"""Method "none", in core over the `linear` op and in fd-cpu over packed panels: the same contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fd_core.api import dtype as dt
from fd_core.api.dtype import DType
from fd_core.api.platform import Platform
from fd_core.api.quant import LinearSpec, QuantMethod
from fd_core.api.tensor import TensorSpec, from_numpy
from fd_core.host.oracle import oracle_target
from fd_core.host.reference import ReferencePlatform
from fd_core.ops.catalogue import find
from fd_core.quantization.unquantized import Unquantized


class Ops:
    """As much of a dispatch table as the method calls."""

    linear = staticmethod(oracle_target(find("linear")))


def core_method() -> tuple[QuantMethod, Platform]:
    platform = ReferencePlatform()
    return Unquantized(platform.open(0), platform, Ops()), platform


def packed_method() -> tuple[QuantMethod, Platform]:
    library = pytest.importorskip("fd_cpu.library", reason="fd-cpu is not installed")
    try:
        library.chosen()
    except RuntimeError as error:
        pytest.skip(str(error))
    from fd_cpu.platform import CPUPlatform
    from fd_cpu.quant import PackedLinear

    platform = CPUPlatform()
    return PackedLinear(platform.open(0), platform, None), platform


METHODS = [pytest.param(core_method, id="core"), pytest.param(packed_method, id="fd-cpu")]
SHAPES = [(1, 1), (64, 32), (100, 33), (257, 95), (300, 160)]  # (K, N): multiples of the tile and not


def spec(depth: int, columns: int, kind: DType, bias: bool = False) -> LinearSpec:
    return LinearSpec(depth, columns, bias, kind, dt.float32, prefix="layers.0.mlp")


def normal(seed: int, shape: tuple[int, ...], kind: DType) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(kind.numpy())


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("kind", dt.FLOATS, ids=str)
@pytest.mark.parametrize(("depth", "columns"), SHAPES)
def test_life_of_a_weight(make: Any, kind: DType, depth: int, columns: int) -> None:
    """Declared, packed once from memory that is then gone, applied to any number of rows."""
    method, platform = make()
    wanted = spec(depth, columns, kind, bias=True)
    assert method.create_weights(wanted) == {"weight": TensorSpec((columns, depth), kind)}
    weight, bias = normal(0, (columns, depth), kind), normal(1, (columns,), dt.float32)
    source = weight.copy()
    packed = method.process_weights(wanted, {"weight": from_numpy(source)})
    source[...] = 7
    for rows in (0, 1, 3, 17):
        for shift in (None, bias):
            x = normal(2, (rows, depth), dt.float32)
            out = platform.empty(TensorSpec((rows, columns), dt.float32))
            method.apply(
                platform.from_host(x), packed, None if shift is None else platform.from_host(shift), out
            )
            want = x.astype(np.float64) @ weight.astype(np.float64).T + (0 if shift is None else shift)
            np.testing.assert_allclose(platform.to_host(out), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("make", METHODS)
def test_other_weights_are_refused_by_name(make: Any) -> None:
    method, platform = make()
    device = platform.open(0)
    assert method.supports(spec(8, 8, dt.bfloat16), device).ok
    verdict = method.supports(spec(8, 8, dt.int8), device)
    assert not verdict.ok
    assert "layers.0.mlp.weight: want float32 | float16 | bfloat16, have int8" in str(verdict)
    assert "fix: name the checkpoint's quantisation method" in str(verdict)


def test_the_plug_ins_method_comes_first() -> None:
    pytest.importorskip("fd_cpu.quant", reason="fd-cpu is not installed")
    from fd_cpu.quant import PackedLinear

    assert PackedLinear.name == Unquantized.name
    assert PackedLinear.priority > Unquantized.priority
