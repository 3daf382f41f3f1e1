"""Data that describe ops and the kernels that implement them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import FLOATS, DType
from fd_core.api.verdict import YES, ReasonCode, Verdict


class ParamKind(str, Enum):
    """Role of an op's parameter; the order in the schema is the order of every kernel's arguments."""

    IN = "in"
    INOUT = "inout"
    OUT = "out"
    ATTR = "attr"


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter. `optional`: None is allowed. `default` is for attributes and optionals."""

    name: str
    kind: ParamKind
    optional: bool = False
    type: type | None = None
    default: Any = None
    required: bool = True


@dataclass(frozen=True, slots=True)
class OpSpec:
    """The contract of an op: its name, family and parameters in calling order (outputs last)."""

    name: str
    family: str
    params: tuple[Param, ...]
    doc: str = ""

    @property
    def inputs(self) -> tuple[Param, ...]:
        return tuple(p for p in self.params if p.kind is not ParamKind.OUT)

    @property
    def outputs(self) -> tuple[Param, ...]:
        return tuple(p for p in self.params if p.kind is ParamKind.OUT)


class Numerics(str, Enum):
    """BITWISE: equal to the oracle bit for bit. TOLERANCE: within the op's argued tolerance."""

    BITWISE = "bitwise"
    TOLERANCE = "tolerance"


@dataclass(frozen=True, slots=True)
class Require:
    """Static requirements of a kernel, so that the capability matrix needs no hardware.

    `arch`: inclusive (lowest, highest) rank on the platform's ladder, None for open ends, with
    `arch_name` for messages. `dtypes`: allowed element types per parameter; a parameter not named
    is unrestricted. `features`: words that `DeviceInfo.features` must hold.
    """

    arch: tuple[int | None, int | None] = (None, None)
    arch_name: str = ""
    dtypes: Mapping[str, tuple[DType, ...]] = field(default_factory=lambda: MappingProxyType({}))
    features: frozenset[str] = frozenset()

    def check_device(self, op: str, device: DeviceInfo) -> Verdict:
        """Does `device` meet the architecture and the features?"""
        low, high = self.arch
        verdict = YES
        if (low is not None and device.arch_rank < low) or (high is not None and device.arch_rank > high):
            want = self.arch_name or f"rank {low}..{high}"
            verdict &= Verdict.no(ReasonCode.ARCH, op, want, device.arch, f"use {want}; {_ORACLE}")
        missing = self.features - device.features
        if missing:
            want, have = (", ".join(sorted(words)) for words in (missing, device.features))
            fix = f"use a device with {want}; {_ORACLE}"
            verdict &= Verdict.no(ReasonCode.FEATURE, op, want, have or "none", fix)
        return verdict

    def check_dtypes(self, op: str, dtypes: Mapping[str, DType | None]) -> Verdict:
        """Are the element types (by parameter name, None = absent) among the allowed ones?"""
        wrong = [
            (n, d, self.dtypes[n]) for n, d in dtypes.items() if d and d not in self.dtypes.get(n, (d,))
        ]
        return Verdict.all(
            Verdict.no(ReasonCode.DTYPE, f"{op}.{name}", _names(allowed), have, _conversion(have, allowed))
            for name, have, allowed in wrong
        )


_ORACLE = "FD_FALLBACK=warn runs the op on the NumPy oracle"


def _names(types: tuple[DType, ...]) -> str:
    return " | ".join(map(str, types))


def _conversion(have: DType, allowed: tuple[DType, ...]) -> str:
    """What to do about an element type; the narrowest float for a whole model."""
    floats = sorted(set(allowed) & set(FLOATS), key=lambda kind: (kind.bits, kind.name != "bfloat16"))
    model = f"; a whole model: --dtype {floats[0]}" if floats and have in FLOATS else ""
    return f"convert the tensor to {' or '.join(map(str, allowed))}{model}"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel on offer. Called with the schema's parameters in order, outputs given by the caller.

    `target`: the callable, or "module:attribute" imported when the dispatch table is frozen.
    `supports`: the shape-dependent part, a pure function of the call's arguments.
    `allocates`: the kernel makes temporaries of its own, so it cannot be captured into a graph.
    `source`: the files that it is made from, separated by blanks, for reports.
    """

    op: str
    provider: str
    target: str | Callable[..., Any]
    requires: Require = Require()
    supports: Callable[..., Verdict] | None = None
    priority: int = 0
    numerics: Numerics = Numerics.TOLERANCE
    allocates: bool = False
    source: str = ""
