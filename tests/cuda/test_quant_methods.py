"""What fd-cuda's quantisation methods take and refuse, from facts alone, and where cuBLASLt is sought."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fd_cuda")
from fd_cuda.arch import simulated_devices
from fd_cuda.cublas import library_files
from fd_cuda.quant import INTEGERS, Int4Linear, Int8DynamicLinear, int4_scale_spec, int4_spec, int8_spec

from fd_core.api import dtype as dt
from fd_core.api.device import DeviceInfo
from fd_core.api.quant import LinearSpec, QuantMethod
from fd_core.api.verdict import ReasonCode
from fd_core.quantization.config import QuantError

every_method = pytest.mark.parametrize("method", INTEGERS, ids=lambda m: m.name)


def device(sm: int) -> DeviceInfo:
    return next(info for _, info in simulated_devices() if info.arch_rank == sm)


def spec(depth: int = 256, activation: Any = dt.bfloat16, dtype: Any = dt.bfloat16) -> LinearSpec:
    return LinearSpec(depth, 100, False, dtype, activation, prefix="layers.0.q_proj")


@every_method
@pytest.mark.parametrize("sm", [80, 86, 89, 90, 100, 120])
def test_taken(method: type[QuantMethod], sm: int) -> None:
    assert method.supports(spec(), device(sm)).ok
    assert method.supports(spec(activation=dt.float16, dtype=dt.float32), device(sm)).ok


@every_method
@pytest.mark.parametrize("sm", [70, 75])
def test_refused_without_tensor_cores_for_them(method: type[QuantMethod], sm: int) -> None:
    verdict = method.supports(spec(), device(sm))
    assert [r.code for r in verdict.reasons] == [ReasonCode.ARCH]
    assert "sm_80 or newer" in str(verdict)
    assert f"sm_{sm}" in str(verdict)


@every_method
def test_every_reason_is_told(method: type[QuantMethod]) -> None:
    verdict = method.supports(spec(100 + 3, dt.float32, dt.int8), device(75))
    codes = [r.code for r in verdict.reasons]
    assert codes == [ReasonCode.ARCH, ReasonCode.DTYPE, ReasonCode.DTYPE, ReasonCode.SHAPE]
    assert "layers.0.q_proj" in str(verdict)


def test_widths() -> None:
    assert Int4Linear.supports(spec(264), device(90)).ok
    assert not Int8DynamicLinear.supports(spec(264), device(90)).ok


@pytest.mark.parametrize("group", [32, 0, True, "64"])
def test_group_sizes(group: Any) -> None:
    with pytest.raises(QuantError, match=r"want group_size 64 \| 128 \| -1, have"):
        Int4Linear(device(90), None, None, {"group_size": group})


def test_zero_points_are_said_with_true_or_false() -> None:
    with pytest.raises(QuantError, match=r"want zero_point true \| false, have 'yes'"):
        Int4Linear(device(90), None, None, {"zero_point": "yes"})


@every_method
def test_forms_that_nobody_reads_are_refused(method: type[QuantMethod]) -> None:
    config = {"is_quantized": True, "forms": {method.name: "int8-panels-2"}}
    with pytest.raises(QuantError, match=r"want weights stored in one of int8-panels-1, .*'int8-panels-2'"):
        method(device(90), None, None, config)


def test_experts_are_held_by_weight_only_methods_without_zero_points() -> None:
    """The others answer None, which the chooser refuses with the fix."""
    assert {m.name for m in INTEGERS if m.expert_kernel} == {"wint8", "wint4"}
    assert object.__new__(Int8DynamicLinear).experts() is None
    shifted = object.__new__(Int4Linear)
    shifted.zero_point = True
    assert shifted.experts() is None


def test_layouts_hold_whole_tiles() -> None:
    assert int8_spec(17, 65).shape == (2, 2, 1024)
    assert int4_spec(17, 129, 128).shape == (2, 2, 1024)
    assert int4_spec(16, 64, 64).shape == (1, 1, 512)
    assert int4_scale_spec(17, 129, 128).shape == (2, 2, 16)
    assert int4_spec(17, 129, -1).shape == (2, 2, 1024)
    assert int4_scale_spec(17, 129, -1).shape == (17,)


def test_library_is_found_in_packages_the_newest_first(tmp_path: Path) -> None:
    for folder, name in (("cublas", "libcublasLt.so.12"), ("cu13", "libcublasLt.so.13")):
        (tmp_path / "nvidia" / folder / "lib").mkdir(parents=True)
        (tmp_path / "nvidia" / folder / "lib" / name).touch()
    found = library_files([str(tmp_path / "absent"), str(tmp_path)])
    assert [file.name for file in found] == ["libcublasLt.so.13", "libcublasLt.so.12"]
    assert library_files([]) == []
