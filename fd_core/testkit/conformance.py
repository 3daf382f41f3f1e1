"""The conformance kit: every op of a platform, case by case, against its NumPy oracle and its contract.

`examine(session)` yields one `Finding` per (op, case, dtype, check); `fd conformance` prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fd_core.api.dtype import DType, dtype
from fd_core.api.kernel import Param, ParamKind
from fd_core.api.tensor import Tensor
from fd_core.host.errors import UnsupportedOpError
from fd_core.ops.catalogue import catalogue
from fd_core.ops.schema import Case, OpDef
from fd_core.testkit.check import Values, arguments, assert_close, run_oracle

if TYPE_CHECKING:
    from fd_core.host.session import Session

Array = np.ndarray[Any, Any]
#: What a kernel may raise to refuse a call.
REFUSALS = (TypeError, ValueError, IndexError, UnsupportedOpError)


@dataclass(frozen=True, slots=True)
class Finding:
    """`status`: pass, fail, or skip (the check does not apply; `detail` says why)."""

    op: str
    case: str
    dtype: str
    check: str
    status: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """One case of one op on an open session."""

    session: Session
    definition: OpDef
    case: Case
    dtype: DType

    def inputs(self, seed: int = 0) -> Values:
        return self.case.args(np.random.default_rng(seed), self.dtype.numpy())

    def run(self, values: Values, place: Callable[[Array], Tensor] | None = None) -> Values:
        """Run the platform's kernel on device copies; every tensor comes back to the host."""
        platform = self.session.platform
        put = place or platform.from_host
        placed = {k: put(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}
        getattr(self.session.ops, self.definition.name)(*placed.values())
        platform.synchronize()
        return {k: np.array(platform.to_host(v)) if isinstance(v, Tensor) else v for k, v in placed.items()}

    def written(self) -> list[Param]:
        return [p for p in self.definition.spec.params if p.kind in (ParamKind.OUT, ParamKind.INOUT)]


class CheckFailed(AssertionError):
    """What a check found; the text is the finding's detail."""


class NotApplicable(Exception):
    """Why a check says nothing about this case."""


def agrees_with_oracle(trial: Trial) -> None:
    """Outputs (full of garbage beforehand) within the op's tolerance; inputs left as they were."""
    inputs = trial.inputs()
    _compare(trial, trial.run(arguments(trial.definition, inputs)), run_oracle(trial.definition, inputs))
    got = trial.run(arguments(trial.definition, inputs))
    for param in trial.definition.spec.params:
        value = inputs.get(param.name)
        if (
            param.kind is ParamKind.IN
            and isinstance(value, np.ndarray)
            and not _same(got[param.name], value)
        ):
            raise CheckFailed(f"{param.name} is an input and was changed")


def _compare(trial: Trial, got: Values, want: Values) -> None:
    for param in trial.written():
        if isinstance(want[param.name], np.ndarray):
            assert_close(trial.definition, param.name, got[param.name], want[param.name])


def repeats(trial: Trial) -> None:
    """The same call twice gives the same bits."""
    first, second = (trial.run(arguments(trial.definition, trial.inputs())) for _ in range(2))
    for param in trial.written():
        if isinstance(first[param.name], np.ndarray) and not _same(first[param.name], second[param.name]):
            raise CheckFailed(f"{param.name} differs between two equal calls")


def rows_are_independent(trial: Trial) -> None:
    """The last row alone gives the bits it gives in the batch."""
    names, inputs = trial.definition.rows, trial.inputs()
    count = min((len(inputs[n]) for n in names if isinstance(inputs.get(n), np.ndarray)), default=0)
    if count < 2 or trial.case.coupled:
        raise NotApplicable(
            trial.case.coupled or "the contract names no rows, or the case has fewer than two"
        )
    whole = trial.run(arguments(trial.definition, inputs))
    row = slice(count - 1, count)
    alone = {k: v[row] if k in names and isinstance(v, np.ndarray) else v for k, v in inputs.items()}
    try:
        single = trial.run(arguments(trial.definition, alone))
    except REFUSALS as error:
        raise NotApplicable(f"one row alone is no valid call: {error}") from error
    for param in trial.written():
        if param.name in names and not _same(whole[param.name][row], single[param.name]):
            raise CheckFailed(f"{param.name}: the last row alone differs from the last row of the batch")


def strided_tensors(trial: Trial) -> None:
    """Tensors with gaps between rows."""
    values = arguments(trial.definition, trial.inputs())
    if not any(isinstance(v, np.ndarray) and v.ndim > 1 and v.size for v in values.values()):
        raise NotApplicable("no tensor with rows")
    _right_or_refused(trial, values, "strided tensors", _with_gaps(trial.session))


def misaligned_tensors(trial: Trial) -> None:
    """Tensors that start one element after an aligned address."""
    values = arguments(trial.definition, trial.inputs())
    _right_or_refused(trial, values, "misaligned tensors", _misaligned(trial.session))


def wrong_dtypes(trial: Trial) -> None:
    """Each tensor in turn as float64."""
    values = arguments(trial.definition, trial.inputs())
    for name in _tensors(values):
        if values[name].size and values[name].dtype != np.float64:
            wrong = values[name].astype(np.float32).astype(np.float64)
            _right_or_refused(trial, {**values, name: wrong}, f"{name} as float64")


def wrong_shapes(trial: Trial) -> None:
    """Each tensor in turn without its last column, with one dimension more, and as a column or flat.

    `[n]` and `[n, 1]` are both legal for a vector with one element per slot; an op that takes them
    says so by giving the oracle's answer.
    """
    values = arguments(trial.definition, trial.inputs())
    for name in _tensors(values):
        if values[name].ndim and values[name].size > 1:
            short = np.ascontiguousarray(values[name][..., :-1])
            _right_or_refused(trial, {**values, name: short}, f"{name} {list(short.shape)}")
            _right_or_refused(trial, {**values, name: values[name][None]}, f"{name} of another rank")
            _right_or_refused(trial, {**values, name: _column_or_flat(values[name])}, f"{name} reshaped")


def _column_or_flat(array: Array) -> Array:
    return array[:, None] if array.ndim == 1 else array.reshape(-1)


CHECKS: dict[str, Callable[[Trial], None]] = {
    check.__name__: check
    for check in (
        agrees_with_oracle,
        repeats,
        rows_are_independent,
        strided_tensors,
        misaligned_tensors,
        wrong_dtypes,
        wrong_shapes,
    )
}


def _tensors(values: Values) -> list[str]:
    return [name for name, value in values.items() if isinstance(value, np.ndarray)]


def _right_or_refused(
    trial: Trial, values: Values, what: str, place: Callable[[Array], Tensor] | None = None
) -> None:
    """A call out of the ordinary is refused before anything is written, or gives the oracle's answer."""
    got = _or_refuse(trial, values, place)
    if got is None:
        return
    want = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in values.items()}
    try:
        trial.definition.oracle(*want.values())
        _compare(trial, got, want)
    except Exception as error:
        raise CheckFailed(f"took {what}, and the result is not the oracle's: {error}") from error


def _or_refuse(trial: Trial, values: Values, place: Callable[[Array], Tensor] | None) -> Values | None:
    """Results, or None if the kernel refused; refusing after something was written is a failure."""
    platform = trial.session.platform
    put = place or platform.from_host
    placed = {k: put(v.copy()) if isinstance(v, np.ndarray) else v for k, v in values.items()}
    before = _snapshot(trial, placed)
    try:
        getattr(trial.session.ops, trial.definition.name)(*placed.values())
        platform.synchronize()
    except REFUSALS as error:
        touched = [n for n, array in _snapshot(trial, placed).items() if not _same(array, before[n])]
        if touched:
            raise CheckFailed(f"refused ({error}) after writing {', '.join(touched)}") from error
        return None
    return {k: np.array(platform.to_host(v)) if isinstance(v, Tensor) else v for k, v in placed.items()}


def _snapshot(trial: Trial, placed: Values) -> Values:
    to_host = trial.session.platform.to_host
    tensors = {p.name: placed[p.name] for p in trial.written()}
    return {k: np.array(to_host(v)) for k, v in tensors.items() if isinstance(v, Tensor)}


def _with_gaps(session: Session) -> Callable[[Array], Tensor]:
    def place(array: Array) -> Tensor:
        if array.ndim < 2 or not array.size:
            return session.platform.from_host(array)
        width = array.shape[-1]
        wide = np.zeros((*array.shape[:-1], width + 16), array.dtype)
        wide[..., :width] = array
        return session.platform.from_host(wide).slice(0, width, dim=array.ndim - 1)

    return place


def _misaligned(session: Session) -> Callable[[Array], Tensor]:
    def place(array: Array) -> Tensor:
        flat = np.zeros(array.size + 1, array.dtype)
        flat[1:] = array.reshape(-1)
        shifted = session.platform.from_host(flat).slice(1, array.size + 1)
        return Tensor(shifted.ptr, array.shape, dtype(array.dtype.name), shifted.storage)

    return place


def _same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def judge(trial: Trial, name: str) -> Finding:
    """Run one check. What the kernel raises is a finding, not an error of the kit."""
    where = (trial.definition.name, trial.case.id, str(trial.dtype), name)
    try:
        CHECKS[name](trial)
    except NotApplicable as why:
        return Finding(*where, "skip", str(why))
    except Exception as error:
        return Finding(*where, "fail", f"{type(error).__name__}: {error}".strip()[:600])
    return Finding(*where, "pass")


def trials(
    session: Session, ops: Sequence[str] | None = None, dtypes: Sequence[str] | None = None
) -> Iterator[Trial]:
    """Every case that is not for timing, in every dtype, of the ops with a kernel on this platform."""
    for name, definition in catalogue().items():
        if (ops and name not in ops) or name not in session.ops:
            continue
        for case in definition.cases:
            if not case.bench:
                kinds = [t for t in case.dtypes if not dtypes or t.name in dtypes]
                yield from (Trial(session, definition, case, t) for t in kinds)


def examine(
    session: Session,
    ops: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    checks: Sequence[str] | None = None,
) -> Iterator[Finding]:
    """Findings of `checks` (default: all)."""
    for trial in trials(session, ops, dtypes):
        for name in checks or CHECKS:
            yield judge(trial, name)
