"""Conformance of quantisation methods that have a grid: weights that lie on it are taken as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.dtype import DType
from fd_core.api.quant import LinearSpec, QuantMethod
from fd_core.api.tensor import from_numpy
from fd_core.quantization.codes import Codes
from fd_core.quantization.config import QuantError
from fd_core.testkit.kit import Finding
from fd_core.testkit.trial import CheckFailed, NotApplicable

if TYPE_CHECKING:
    from fd_core.host.session import Session

Array = np.ndarray[Any, Any]
#: Parts of tiles of outputs and of groups of inputs; more rows than a stream of weights takes.
COLUMNS, DEPTH, ROWS = 90, 208, 37
#: Options under which a method is tried; those that it refuses are left out.
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"zero_point": True})


@dataclass(frozen=True)
class Packed:
    """A method with a weight that lies on its grid. x [ROWS, DEPTH] in the activations' type."""

    method: QuantMethod
    spec: LinearSpec
    codes: Codes
    packed: Any
    x: Array

    @property
    def weight(self) -> Array:
        grid = self.method.grid()
        assert grid is not None
        return self.codes.weight(grid.group).astype(np.float64)

    def product(self, x: Array, bias: float | None = None) -> Array:
        """x W^T + bias, float32."""
        put = self.method.platform.from_host
        out = put(np.full((len(x), COLUMNS), 7, x.dtype))
        shift = None if bias is None else put(np.full(COLUMNS, bias, x.dtype))
        self.method.apply(put(x), self.packed, shift, out)
        return np.asarray(self.method.platform.to_host(out)).astype(np.float32)


def given_codes(one: Packed) -> None:
    """Single inputs of 1 bring out the weights as given, rounded to the result's type; an activation that
    becomes int8 is 127 steps of 1 / 127."""
    inputs = np.arange(ROWS) * 5 % DEPTH
    x = np.eye(DEPTH, dtype=np.float32)[inputs].astype(one.x.dtype)
    unit = {2: 2.0**-8 if one.x.dtype.name == "bfloat16" else 2.0**-11, 4: 2.0**-21}[one.x.dtype.itemsize]
    want = one.weight.T[inputs]
    _same(one.product(x), want, 1.01 * unit * np.abs(want))


def products(one: Packed) -> None:
    """Sums over all inputs, with a bias. Activations may become int8: half a step of a row's largest, for
    each weight; then comes the result's type, 2^-8 of it at most."""
    wide = one.x.astype(np.float64)
    want = wide @ one.weight.T + 1
    steps = np.abs(wide).max(1, keepdims=True) / 127
    allowed = steps / 2 * np.abs(one.weight).sum(1) + 2.0**-7 * (np.abs(want) + 1)
    _same(one.product(one.x, 1), want, allowed)


def _same(got: Array, want: Array, allowed: Array) -> None:
    wrong = ~(np.abs(got - want) <= allowed)  # NaN is no agreement
    if wrong.any():
        raise CheckFailed(f"{int(wrong.sum())} of {wrong.size} results are not those of the codes")


def rows(one: Packed) -> None:
    """A row has the bits that it has alone."""
    many = one.product(one.x, 1)
    for i in (0, ROWS - 1):
        if not np.array_equal(one.product(one.x[i : i + 1], 1)[0], many[i]):
            raise CheckFailed(f"row {i} of {ROWS}: other bits than alone")


def lookups(one: Packed) -> None:
    """Rows of the weight, rounded once."""
    if not one.method.has_lookup:
        raise NotApplicable("it has no lookups")
    platform = one.method.platform
    ids = np.array([COLUMNS - 1, 0, 33], np.int32)
    out = platform.from_host(np.full((3, DEPTH), 7, one.x.dtype))
    one.method.lookup(platform.from_host(ids), one.packed, out)
    if not np.array_equal(platform.to_host(out), one.weight[ids].astype(np.float32).astype(one.x.dtype)):
        raise CheckFailed("rows are not those of the codes")


CHECKS: dict[str, Callable[[Packed], None]] = {
    check.__name__: check for check in (given_codes, products, rows, lookups)
}


def examine_quantization(session: Session) -> Iterator[Finding]:
    """One finding per method, activations' type and check."""
    for name, make in sorted(session.quant_methods.items()):
        for options in OPTIONS:
            for kind in (dt.float32, dt.bfloat16, dt.float16):
                case = f"{name}{' zero_point' if options else ''}"
                yield from _findings(session, make, options, kind, case)


def _findings(
    session: Session, make: type[QuantMethod], options: dict[str, Any], kind: DType, case: str
) -> Iterator[Finding]:
    spec = LinearSpec(DEPTH, COLUMNS, True, kind, kind, prefix="layer")
    wanted = session.device.activation_dtype
    if (wanted is not None and kind != wanted) or not make.supports(spec, session.device).ok:
        return
    try:
        method = make(session.device, session.platform, session.ops, options)
    except QuantError:
        return
    grid = method.grid()
    if grid is None or (options and grid.zeros is None):
        return
    try:
        one = _packed(method, spec)
    except Exception as error:
        yield _finding(case, kind, "pack", error)
        return
    for check, run in CHECKS.items():
        yield _judge(one, case, kind, check, run)


def _packed(method: QuantMethod, spec: LinearSpec) -> Packed:
    """Codes, scales and zero points all over the grid; scales that bfloat16 holds, products near 1."""
    grid, rng = method.grid(), np.random.default_rng(3)
    assert grid is not None
    groups = -(-DEPTH // grid.group) if grid.group else 1
    code = rng.integers(grid.low, grid.high + 1, (COLUMNS, DEPTH)).astype(np.int8)
    scale = (rng.uniform(0.5, 1, (COLUMNS, groups)) / (grid.high * DEPTH**0.5)).astype(dt.bfloat16.numpy())
    zero = None
    if grid.zeros:
        low, high = max(grid.zeros[0], -16), min(grid.zeros[1], 16)
        zero = rng.integers(low, high + 1, (COLUMNS, groups)).astype(np.int8)
    codes = Codes(code, scale.astype(np.float32), zero)
    given = {"weight": codes.weight(grid.group), "scale": codes.scale}
    if zero is not None:
        given["zero"] = zero.astype(np.float32)
    packed = method.process_weights(spec, {name: from_numpy(array) for name, array in given.items()})
    x = rng.standard_normal((ROWS, DEPTH)).astype(spec.activation.numpy())
    return Packed(method, spec, codes, packed, x)


def _judge(one: Packed, case: str, kind: DType, check: str, run: Callable[[Packed], None]) -> Finding:
    try:
        run(one)
    except NotApplicable as why:
        return Finding("(quantization)", case, kind.name, check, "skip", str(why))
    except Exception as error:
        return _finding(case, kind, check, error)
    return Finding("(quantization)", case, kind.name, check, "pass")


def _finding(case: str, kind: DType, check: str, error: Exception) -> Finding:
    detail = f"{type(error).__name__}: {error}"[:600]
    return Finding("(quantization)", case, kind.name, check, "fail", detail)
