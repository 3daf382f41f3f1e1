"""The order of scales and zero points that come with weights, and who packs them: no GPU needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("fd_cuda")
from fd_cuda import library
from fd_cuda.arch import simulated_devices
from fd_cuda.quant import INTEGERS, Int4Linear, Int8Linear
from fd_cuda.quant_given import scale_pairs, step_bytes, turned

from fd_core.api import dtype as dt
from fd_core.api.quant import Grid, LinearSpec
from fd_core.api.tensor import Tensor, TensorSpec, empty_host, from_numpy
from fd_core.quantization.codes import CodeFormat
from fd_core.quantization.config import QuantConfig, parse_quantization
from fd_core.quantization.registry import QuantChooser

Array = np.ndarray[Any, Any]
(DEVICE,) = (info for _, info in simulated_devices() if info.arch_rank == 90)
METHODS = {m.name: m for m in INTEGERS}


class HostPlatform:
    """Device memory that is the host's."""

    def from_host(self, array: Array) -> Tensor:
        return from_numpy(array)

    def empty(self, spec: TensorSpec) -> Tensor:
        return empty_host(spec)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Calls of exports, in their order: the name, then the arguments."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(library, "function", lambda name: lambda *args: calls.append((name, *args)))
    return calls


def method_of(name: str, **config: Any) -> Any:
    return METHODS[name](DEVICE, HostPlatform(), None, config)


def numbers(columns: int, groups: int) -> Array:
    return np.arange(columns * groups, dtype=np.float32).reshape(columns, groups) % 97 - 48


@pytest.mark.parametrize(("columns", "groups"), [(1, 1), (16, 2), (37, 3)])
def test_pairs_and_steps(columns: int, groups: int) -> None:
    """Row r of a tile is at 2 * (r % 8) + r / 8."""
    scale = numbers(columns, groups)
    pairs, steps = scale_pairs(scale, groups), step_bytes(scale, scale + 60, groups)
    tiles = -(-columns // 16)
    assert (pairs.shape, steps.shape) == ((tiles, groups, 16), (tiles, groups, 48))
    for n in range(16 * tiles):
        for g in range(groups):
            want = scale[n, g] if n < columns else 0
            tile, at = n // 16, n % 8 * 2 + n % 16 // 8
            assert pairs[tile, g, at] == want
            assert steps[tile, g, 2 * at : 2 * at + 2].view(dt.bfloat16.numpy())[0] == want
            assert steps[tile, g, 32 + at] == (want + 68 if n < columns else 8)


@pytest.mark.parametrize("zero", [-120, -9, -8, 0, 7, 119])
def test_zero_points_the_other_way_round_mean_the_same(zero: int) -> None:
    code = np.arange(-8, 8)
    scale, moved = turned(np.full((1, 1), 0.375, np.float32), np.full((1, 1), zero, np.float32))
    assert -8 <= moved[0, 0] <= 119
    weight = (code - zero) * 0.375
    near = np.rint(weight / scale[0, 0]) + moved[0, 0]
    assert -8 <= near.min() <= near.max() <= 7
    np.testing.assert_array_equal((near - moved[0, 0]) * scale[0, 0], weight)


@pytest.mark.parametrize("zero", [-128, -121, 120, 127])
def test_zero_points_beyond_the_kernels(zero: int) -> None:
    """All sixteen codes are kept. A scale that is 8 / 119 larger about the middle of 16 codes moves the
    outermost by 7.5 * 8 / 119 steps of some 120: 0.42 %."""
    code = np.arange(-8, 8)
    scale, moved = turned(np.full((1, 1), 0.375, np.float32), np.full((1, 1), zero, np.float32))
    assert moved[0, 0] == 119
    weight = (code - zero) * 0.375
    near = np.clip(np.rint(weight / scale[0, 0]) + moved[0, 0], -8, 7)
    assert len(set(near)) == 16
    np.testing.assert_allclose((near - moved[0, 0]) * scale[0, 0], weight, rtol=0.0043)


def test_one_scale_for_all_inputs_is_repeated() -> None:
    np.testing.assert_array_equal(
        scale_pairs(numbers(20, 1), 3)[:, 1], scale_pairs(numbers(20, 1), 1)[:, 0]
    )


@pytest.mark.parametrize(
    ("name", "config", "grid", "exports", "shape"),
    [
        ("wint8", {}, Grid(-128, 127, 0, by_effect=False), ["pack_int8_given"], (40,)),
        ("w8a8", {}, Grid(-128, 127, 0, by_effect=False), ["pack_rows_given"], (40,)),
        ("wint4", {"group_size": 64}, Grid(-8, 7, 64), ["pack_int4_given"], (3, 4, 16)),
        ("wint4", {"group_size": -1}, Grid(-8, 7, 0), ["pack_int4_given"], (40,)),
        (
            "wint4",
            {"group_size": 128, "zero_point": True},
            Grid(-8, 7, 128, (-128, 127)),
            ["pack_int4_given"],
            (3, 2, 48),
        ),
        (
            "wint4",
            {"group_size": -1, "zero_point": True},
            Grid(-8, 7, 0, (-128, 127)),
            ["pack_int4_given"],
            (3, 2, 48),
        ),
    ],
)
def test_given_weights_are_packed_as_they_are(
    called: list[tuple[Any, ...]],
    name: str,
    config: dict[str, Any],
    grid: Grid,
    exports: list[str],
    shape: tuple[int, ...],
) -> None:
    method = method_of(name, **config)
    assert method.grid() == grid
    count = 256 // grid.group if grid.group else 1
    weights = {"weight": np.ones((40, 256), np.float32), "scale": np.ones((40, count), np.float32)}
    if grid.zeros:
        weights["zero"] = np.ones((40, count), np.float32)
    spec = LinearSpec(256, 40, False, dt.bfloat16, dt.bfloat16, prefix="layer")
    codes, scales = method.process_weights(spec, {n: from_numpy(a) for n, a in weights.items()})
    assert [call[0] for call in called] == exports
    assert called[0][-1] is codes
    assert (codes.spec, scales.spec) == method.packed_specs(40, 256)
    assert scales.shape == shape


def test_zero_points_of_plain_weights_are_sought_first(called: list[tuple[Any, ...]]) -> None:
    method = method_of("wint4", zero_point=True)
    monkey: Any = method.platform
    monkey.to_host = lambda tensor: np.zeros(tensor.shape, np.float32)
    spec = LinearSpec(256, 40, False, dt.bfloat16, dt.bfloat16, prefix="layer")
    method.process_weights(spec, {"weight": from_numpy(np.ones((40, 256), np.float32))})
    assert [call[0] for call in called] == ["int4_steps", "pack_int4_given"]
    method.apply(None, (1, 2), None, None)
    method.lookup(None, (1, 2), None)
    assert [call[0] for call in called[2:]] == ["linear_int4_zero", "lookup_int4_zero"]
    assert method.experts() is None


@pytest.mark.parametrize(
    ("checkpoint", "chosen", "form"),
    [
        ({"quantization": "wint4", "forms": {"wint4": "int4-panels-1"}}, Int4Linear, "int4-panels-1"),
        (
            {"quantization": "w4a8", "zero_point": True, "forms": {"w4a8": "int4-zero-panels-1"}},
            Int4Linear,
            "int4-zero-panels-1",
        ),
        ({"quantization": "wint8", "forms": {"wint8": "int8-panels-1"}}, Int8Linear, "int8-panels-1"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, Int4Linear, "awq"),
    ],
)
def test_converted_checkpoints_are_read(
    called: list[tuple[Any, ...]], checkpoint: dict[str, Any], chosen: type[Any], form: str
) -> None:
    """Also one that names a method that only other devices have, of the same codes."""
    quant = parse_quantization({**checkpoint, "is_quantized": True}, "", ("none", *METHODS))
    assert isinstance(quant, QuantConfig)
    choose = QuantChooser(quant, METHODS, DEVICE, HostPlatform(), None)  # type: ignore[arg-type]
    method = choose(LinearSpec(256, 40, False, dt.bfloat16, dt.bfloat16, prefix="layer"))
    assert type(method) is chosen
    assert isinstance(method.codes, CodeFormat)
    assert (method.codes.name, method.stored) == (form, False)
