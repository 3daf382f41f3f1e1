"""One case of one op on an open session, and what the kit's checks are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fd_core.api.dtype import DType, dtype
from fd_core.api.kernel import Kernel, Param, ParamKind
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy
from fd_core.api.verdict import YES, Verdict
from fd_core.host.dispatch import FrozenOp, GuardedOp, accepts
from fd_core.host.errors import UnsupportedOpError
from fd_core.host.oracle import ORACLE
from fd_core.ops.checks import DataError
from fd_core.ops.schema import Case, OpDef
from fd_core.testkit.check import Values, arguments, assert_close, garbage

if TYPE_CHECKING:
    from fd_core.host.session import Session

Array = np.ndarray[Any, Any]
Place = Callable[[Array], Tensor]
#: What a kernel may raise to refuse a call.
REFUSALS = (TypeError, ValueError, IndexError, UnsupportedOpError)


@dataclass(frozen=True, slots=True)
class Trial:
    """One case of one op on an open session."""

    session: Session
    definition: OpDef
    case: Case
    dtype: DType

    @property
    def where(self) -> tuple[str, str, str]:
        return self.definition.name, self.case.id, str(self.dtype)

    def inputs(self, seed: int = 0) -> Values:
        return self.case.args(np.random.default_rng(seed), self.dtype.numpy())

    def run(self, values: Values, place: Place | None = None) -> Values:
        """Run the platform's kernel on device copies; every tensor comes back to the host."""
        platform = self.session.platform
        put = place or platform.from_host
        placed = {k: put(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}
        getattr(self.session.ops, self.definition.name)(*placed.values())
        platform.synchronize()
        return fetch(self.session, placed)

    def written(self) -> list[Param]:
        return [p for p in self.definition.spec.params if p.kind in (ParamKind.OUT, ParamKind.INOUT)]


class CheckFailed(AssertionError):
    """What a check found; the text is the finding's detail."""


class NotApplicable(Exception):
    """Why a check says nothing about this case."""


def compiled(trial: Trial) -> Kernel:
    """The platform's kernel. NotApplicable where the oracle stands in: it defines results, not manners."""
    kernel = trial.session.ops.table[trial.definition.name].kernel
    if kernel.provider == ORACLE:
        raise NotApplicable("the oracle serves this op")
    return kernel


def declined(trial: Trial) -> Verdict:
    """Why the platform's kernel leaves this call to others, by its record and its `supports`."""
    kernel = trial.session.ops.table[trial.definition.name].kernel
    if kernel.provider == ORACLE or not (kernel.requires.dtypes or kernel.supports):
        return YES
    values = arguments(trial.definition, trial.inputs()).values()
    call = tuple(from_numpy(v) if isinstance(v, np.ndarray) else v for v in values)
    return accepts(kernel, trial.definition.spec, call)


def compare(trial: Trial, got: Values, want: Values) -> None:
    for param in trial.written():
        if isinstance(want[param.name], np.ndarray):
            assert_close(trial.definition, param.name, got[param.name], want[param.name])


def tensors(values: Values) -> list[str]:
    return [name for name, value in values.items() if isinstance(value, np.ndarray)]


def right_or_refused(trial: Trial, values: Values, what: str, place: Place | None = None) -> None:
    """A call out of the ordinary is refused before anything is written, or gives the oracle's answer.

    Of what tensors hold an asynchronous device knows nothing before it launches: there a call whose data
    the oracle refuses need only do no harm.
    """
    got = or_refuse(trial, values, place)
    if got is None:
        return
    want = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in values.items()}
    try:
        trial.definition.oracle(*want.values())
        compare(trial, got, want)
    except Exception as error:
        if isinstance(error, DataError) and "asynchronous" in trial.session.device.features:
            return
        raise CheckFailed(f"took {what}, and the result is not the oracle's: {error}") from error


def or_refuse(trial: Trial, values: Values, place: Place | None) -> Values | None:
    """Results, or None if the kernel refused; refusing after something was written is a failure."""
    platform = trial.session.platform
    put = place or platform.from_host
    placed = {k: put(v.copy()) if isinstance(v, np.ndarray) else v for k, v in values.items()}
    before = _snapshot(trial, placed)
    op = trial.session.ops.table[trial.definition.name]
    if _left_to_the_oracle(op, tuple(placed.values())):
        return None
    try:
        op(*placed.values())
        platform.synchronize()
    except REFUSALS as error:
        touched = [n for n, array in _snapshot(trial, placed).items() if not same(array, before[n])]
        if touched:
            raise CheckFailed(f"refused ({error}) after writing {', '.join(touched)}") from error
        return None
    return fetch(trial.session, placed)


def fetch(session: Session, placed: Values) -> Values:
    """Host copies of every tensor; the rest as it is."""
    return {k: read(session, v) if isinstance(v, Tensor) else v for k, v in placed.items()}


def read(session: Session, tensor: Tensor) -> Array:
    """A host copy; of a tensor that only claims to be elsewhere, from the host tensor that it covers."""
    if isinstance(tensor.storage.owner, Tensor):
        return np.array(tensor.storage.owner.numpy())
    on_host = tensor.storage.on_host and tensor.storage.platform is None
    return np.array(tensor.numpy() if on_host else session.platform.to_host(tensor))


def _left_to_the_oracle(op: FrozenOp, call: tuple[Any, ...]) -> bool:
    """Whether dispatch finds no kernel for this call: then there is none whose manners could be wrong."""
    if not isinstance(op, GuardedOp):
        return False
    kernels = (kernel for kernel in op.candidates if kernel.provider != ORACLE)
    return not any(accepts(kernel, op.spec, call).ok for kernel in kernels)


def _snapshot(trial: Trial, placed: Values) -> Values:
    tensors = {p.name: placed[p.name] for p in trial.written()}
    return {k: read(trial.session, v) for k, v in tensors.items() if isinstance(v, Tensor)}


def with_gaps(session: Session) -> Place:
    def place(array: Array) -> Tensor:
        if array.ndim < 2 or not array.size:
            return session.platform.from_host(array)
        width = array.shape[-1]
        wide = np.zeros((*array.shape[:-1], width + 16), array.dtype)
        wide[..., :width] = array
        return session.platform.from_host(wide).slice(0, width, dim=array.ndim - 1)

    return place


def misaligned(session: Session) -> Place:
    def place(array: Array) -> Tensor:
        flat = np.zeros(array.size + 1, array.dtype)
        flat[1:] = array.reshape(-1)
        shifted = session.platform.from_host(flat).slice(1, array.size + 1)
        return Tensor(shifted.ptr, array.shape, dtype(array.dtype.name), shifted.storage)

    return place


class Guards:
    """Places arrays between guard elements, and tells whether something was written there."""

    SIZE = 256

    def __init__(self, session: Session) -> None:
        self.session = session
        self._whole: list[Tensor] = []

    def place(self, array: Array) -> Tensor:
        if not array.size:
            return self.session.platform.from_host(array)
        kind = dtype(array.dtype.name)
        flat = garbage(TensorSpec((array.size + 2 * self.SIZE,), kind))
        flat[self.SIZE : -self.SIZE] = array.reshape(-1)
        whole = self.session.platform.from_host(flat)
        self._whole.append(whole)
        inside = whole.slice(self.SIZE, self.SIZE + array.size)
        return Tensor(inside.ptr, array.shape, kind, inside.storage)

    def broken(self) -> bool:
        return any(self._changed(read(self.session, whole)) for whole in self._whole)

    def _changed(self, flat: Array) -> bool:
        untouched = garbage(TensorSpec((self.SIZE,), dtype(flat.dtype.name)))
        return not (same(flat[: self.SIZE], untouched) and same(flat[-self.SIZE :], untouched))


def same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
