"""Which kernel serves a call and why not the others: the predicates of dispatch, asked one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import DType
from fd_core.api.kernel import Kernel, ParamKind
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy
from fd_core.api.verdict import YES, Verdict
from fd_core.host.dispatch import accepts, resolve
from fd_core.host.freeze import BIND_ERRORS, not_built, offers
from fd_core.host.oracle import ORACLE, oracle_kernel
from fd_core.ops.schema import OpDef


@dataclass(frozen=True, slots=True)
class Offer:
    """One kernel for one call. `source`: device, dtypes and `supports`; `built`: this build has it."""

    kernel: Kernel
    source: Verdict
    built: Verdict

    @property
    def verdict(self) -> Verdict:
        return self.source & self.built

    @property
    def is_oracle(self) -> bool:
        return self.kernel.provider == ORACLE


def explain(
    definition: OpDef, kernels: Iterable[Kernel], device: DeviceInfo, args: tuple[Any, ...]
) -> list[Offer]:
    """Every kernel of the op for this call, in the order dispatch tries them; the oracle is last."""
    mine = [kernel for kernel in kernels if kernel.op == definition.name]
    rows = [*offers(definition.name, mine, device), (oracle_kernel(definition), YES)]
    return [_offer(definition, kernel, verdict, args) for kernel, verdict in rows]


def _offer(definition: OpDef, kernel: Kernel, on_device: Verdict, args: tuple[Any, ...]) -> Offer:
    source = on_device & accepts(kernel, definition.spec, args)
    try:
        resolve(kernel.target)
    except BIND_ERRORS as error:
        return Offer(kernel, source, not_built(definition.name, kernel, error))
    return Offer(kernel, source, YES)


def chosen(rows: Iterable[Offer]) -> Offer | None:
    """The kernel that serves the call."""
    return next((row for row in rows if row.verdict.ok), None)


def example(
    definition: OpDef, dtype: DType, changes: Mapping[str, TensorSpec] | None = None
) -> tuple[Any, ...]:
    """A typical call with host tensors, from the op's cases; `changes` replaces parameters.

    ValueError if no case has this dtype.
    """
    import numpy as np

    inputs = _case_inputs(definition, dtype)
    for name, spec in (changes or {}).items():
        inputs[name] = np.zeros(spec.shape, spec.dtype.numpy())
    return tuple(_arguments(definition, inputs))


def _case_inputs(definition: OpDef, dtype: DType) -> dict[str, Any]:
    """The first case without empty tensors that is not meant for timing, else the first."""
    import numpy as np

    cases = [case for case in definition.cases if dtype in case.dtypes]
    if not cases:
        have = ", ".join(map(str, dtypes(definition)))
        raise ValueError(f"{definition.name}: no case with dtype {dtype}; its dtypes are {have}")
    first: dict[str, Any] | None = None
    for case in sorted(cases, key=lambda case: case.bench):
        inputs = case.args(np.random.default_rng(0), dtype.numpy())
        first = inputs if first is None else first
        if all(value.size for value in inputs.values() if isinstance(value, np.ndarray)):
            return inputs
    assert first is not None
    return first


def _arguments(definition: OpDef, inputs: Mapping[str, Any]) -> Iterable[Any]:
    described = {k: _spec(v) for k, v in inputs.items()}
    outputs = iter(definition.infer(**described))
    for param in definition.spec.params:
        if param.kind is ParamKind.OUT:
            yield _blank(next(outputs))
        else:
            value = inputs.get(param.name, param.default)
            yield from_numpy(value) if hasattr(value, "__array_interface__") else value


def _spec(value: Any) -> Any:
    return from_numpy(value).spec if hasattr(value, "__array_interface__") else value


def _blank(spec: TensorSpec) -> Tensor:
    import numpy as np

    return from_numpy(np.empty(spec.shape, spec.dtype.numpy()))


def dtypes(definition: OpDef) -> list[DType]:
    """The element types that the op's cases run through."""
    return list(dict.fromkeys(dtype for case in definition.cases for dtype in case.dtypes))
