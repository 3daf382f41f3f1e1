"""Paddle's fused operators: which of them this build registers for a place, asked of the build itself."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from fd_xpu import settings
from fd_xpu.memory import paddle

#: The operators that ops of the table prefer to compositions.
OPERATORS = (
    "fused_rms_norm_quant",
    "fused_rotary_position_embedding",
    "swiglu",
    "weight_only_linear",
    "weight_quantize",
)
#: Operators and types that Paddle's source (paddle/phi/backends/xpu/xpu3_op_list.cc) lists for the P800,
#: under the names of Paddle 3.3. Read there, not seen on a device.
_XPU3 = ("fused_rms_norm_quant", "fused_rotary_position_embedding", "swiglu")
_FLOATS = ("float32", "float16", "bfloat16")


def registered(place_type: str) -> Iterator[tuple[str, str]]:
    """(operator, element type) pairs of OPERATORS that the imported Paddle has kernels for."""
    table = kernel_table()
    for name in OPERATORS:
        for kind in sorted(table.get(name, {}).get(place_type.lower(), ())):
            yield name, kind


@cache
def kernel_table() -> dict[str, dict[str, frozenset[str]]]:
    """operator -> place -> element types."""
    rows: Any = paddle().base.core._get_registered_phi_kernels("all")
    return {name: _by_place(rows.get(name, ())) for name in OPERATORS}


def _by_place(keys: Any) -> dict[str, frozenset[str]]:
    """Keys read "(CPU, Undefined(AnyLayout), float32)"."""
    found: dict[str, set[str]] = {}
    for key in keys:
        parts = [part.strip() for part in str(key).strip("()").split(",")]
        found.setdefault(parts[0].lower(), set()).add(parts[-1])
    return {place: frozenset(kinds) for place, kinds in found.items()}


def has(operator: str, x: Any) -> bool:
    """Whether `operator` is to be used for a tensor like `x`: the build has it, and the user wants it."""
    return _usable(operator, place_of(x), str(x.dtype).rpartition(".")[2])


@cache
def _usable(operator: str, place: str, kind: str) -> bool:
    return settings.use_fused() and kind in kernel_table()[operator].get(place, ())


def place_of(x: Any) -> str:
    """The name under which kernels for the place of `x` are registered: "cpu", "xpu", "npu" ..."""
    place = x.place
    if place.is_cpu_place():
        return "cpu"
    if place.is_xpu_place():
        return "xpu"
    return str(place.custom_device_type()) if place.is_custom_place() else "gpu"


def listed(arch: str) -> Iterator[tuple[str, str]]:
    """What Paddle's sources say of a generation, for devices that are not there."""
    if arch == "p800":
        yield from ((name, kind) for name in _XPU3 for kind in _FLOATS)
