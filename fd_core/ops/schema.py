"""How an op is declared: one Python function is its signature, its documentation and its oracle.

    @op(family="norm", infer=lambda x, weight, eps: [x], cases=CASES, tolerance=TOLERANCE)
    def rms_norm(x: In, weight: In, eps: float, out: Out) -> None:
        '''contract ...'''
        ... NumPy that writes `out` ...

Parameters annotated `In`, `InOut`, `Out` (or `OptIn`, `OptInOut`: None allowed) are tensors, all
others attributes. Outputs come last. Every kernel of the op, compiled or not, takes exactly these
parameters in this order; the oracle takes NumPy arrays in their place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, get_type_hints

import numpy as np

from fd_core.api.dtype import DType
from fd_core.api.kernel import OpSpec, Param, ParamKind
from fd_core.api.tensor import Shape, TensorSpec

Array = np.ndarray[Any, Any]
In = Annotated[Array, Param("", ParamKind.IN)]
InOut = Annotated[Array, Param("", ParamKind.INOUT)]
Out = Annotated[Array, Param("", ParamKind.OUT)]
OptIn = Annotated[Array | None, Param("", ParamKind.IN, optional=True)]
OptInOut = Annotated[Array | None, Param("", ParamKind.INOUT, optional=True)]

#: The "default" of an output that follows attributes with defaults: there is none.
REQUIRED: Any = inspect.Parameter.empty

Infer = Callable[..., Sequence[TensorSpec]]


@dataclass(frozen=True, slots=True)
class StridedSpec(TensorSpec):
    """An output that the public call allocates in another memory order: `strides` in elements, none 0.

    Kernels write any strides that they are given.
    """

    strides: Shape = ()

    @property
    def span(self) -> int:
        """Elements from the first to the last, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|kernel - oracle| <= atol + rtol * |oracle|, per element type; `because` argues the numbers.

    A type that is not listed must match bit for bit (NaN equals NaN).
    """

    because: str
    by_dtype: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # name -> (rtol, atol)

    def of(self, dtype: DType) -> tuple[float, float]:
        return self.by_dtype.get(dtype.name, (0.0, 0.0))


EXACT = Tolerance("data movement or integers: bit for bit")


@dataclass(frozen=True, slots=True)
class Case:
    """One input set, for correctness and (with `bench`) for speed.

    `args(rng, dtype)` returns every input by name: NumPy arrays, attributes, None for absent.
    `dtypes` are the values `dtype` runs through. `bytes`/`flops` of the call serve the benchmark;
    `bytes` is a function of the element size where it depends on `dtype`.
    `coupled`: why the op's rows influence each other in this case; empty: they must not.
    """

    id: str
    args: Callable[[np.random.Generator, np.dtype[Any]], dict[str, Any]]
    dtypes: tuple[DType, ...]
    bench: bool = False
    bytes: int | Callable[[int], int] = 0
    flops: int = 0
    coupled: str = ""

    def bytes_of(self, dtype: DType) -> int:
        return self.bytes(dtype.itemsize) if callable(self.bytes) else self.bytes


@dataclass(frozen=True, slots=True)
class OpDef:
    """Everything known about an op: contract, shape rule, oracle, cases, tolerance.

    `infer(**inputs)`: output specs from inputs (tensors as TensorSpec, attributes as they are).
    `rows`: parameters whose first dimension enumerates rows that must not influence each other. Where
    their lengths differ (slots beyond the rows of a step), rows are those of the shortest.
    """

    spec: OpSpec
    infer: Infer
    oracle: Callable[..., None]
    cases: tuple[Case, ...]
    tolerance: Tolerance
    rows: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.spec.name


def _parameter(name: str, hint: Any, parameter: inspect.Parameter) -> Param:
    required = parameter.default is inspect.Parameter.empty
    default = None if required else parameter.default
    for meta in getattr(hint, "__metadata__", ()):
        if isinstance(meta, Param):
            return Param(name, meta.kind, meta.optional, None, default, required)
    return Param(name, ParamKind.ATTR, type=hint, default=default, required=required)


def _spec(fn: Callable[..., None], family: str) -> OpSpec:
    hints = get_type_hints(fn, include_extras=True)
    signature = inspect.signature(fn).parameters
    params = tuple(_parameter(name, hints[name], p) for name, p in signature.items())
    kinds = [p.kind is ParamKind.OUT for p in params]
    if kinds != sorted(kinds):
        raise TypeError(f"op {fn.__name__}: outputs must come last, have {list(signature)}")
    return OpSpec(fn.__name__, family, params, inspect.getdoc(fn) or "")


def _no_outputs(**_: Any) -> Sequence[TensorSpec]:
    return []


def op(
    *,
    family: str,
    cases: Iterable[Case],
    tolerance: Tolerance,
    infer: Infer = _no_outputs,
    rows: tuple[str, ...] = (),
) -> Callable[[Callable[..., None]], OpDef]:
    """Turn an oracle function into an op definition (the module attribute of the same name)."""

    def wrap(fn: Callable[..., None]) -> OpDef:
        return OpDef(_spec(fn, family), infer, fn, tuple(cases), tolerance, rows)

    return wrap
