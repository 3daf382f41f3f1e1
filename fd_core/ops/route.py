"""The short way of a public call: tensors that a compiled kernel takes as they are.

What a call needs (order of the arguments, defaults, what is returned) depends only on the types of its
arguments and the names of its keywords, so it is worked out once per such form and kept as a `Route`.
The kernel itself checks shapes, element types and devices, and runs on the guest's current stream
(TVM-FFI asks the type's exchange table). Every other call takes the long way in `call.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from fd_core.api.kernel import OpSpec, Param, ParamKind
from fd_core.api.tensor import Tensor
from fd_core.host.dispatch import FrozenOp
from fd_core.ops.exchange import exchange
from fd_core.ops.guest import records

if TYPE_CHECKING:
    from fd_core.host.session import Session


@dataclass(frozen=True, slots=True)
class Route:
    """`pick` orders (positional..., keyword..., constants...) as the schema; `tracked` are positions of
    tensors that may require a gradient, `results` of those that are handed back."""

    op: FrozenOp
    target: Callable[..., Any]
    pick: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    constants: tuple[Any, ...]
    tracked: tuple[int, ...]
    results: tuple[int, ...]

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[bool, Any]:
        """(True, the call's result); (False, None) where a gradient is wanted: the long way refuses."""
        values = self.pick((*args, *kwargs.values(), *self.constants))
        for position in self.tracked:
            if values[position].requires_grad and records(type(values[position])):
                return False, None
        self.op.calls += 1
        self.target(*values)
        results = self.results
        return True, values[results[0]] if len(results) == 1 else [values[i] for i in results] or None


def form(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a route depends on: types by position, names, and types by name."""
    return (*map(type, args), *kwargs, *map(type, kwargs.values()))


def find_route(
    spec: OpSpec, session: Session, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Route | None:
    """The route of calls of this form; None if they must take the long way."""
    op = session.ops.table.get(spec.name)
    if type(op) is not FrozenOp or not _is_compiled(op.target):
        return None
    places = _places(spec, args, kwargs)
    if places is None:
        return None
    given = {name: (args[i] if i < len(args) else [*kwargs.values()][i - len(args)]) for name, i in places}
    if not all(_fits(p, given) for p in spec.params):
        return None
    return _route(spec, op, dict(places), given, len(args) + len(kwargs))


def _is_compiled(target: Any) -> bool:
    """Whether the target is TVM-FFI's function, which takes foreign tensors."""
    ffi = sys.modules.get("tvm_ffi")
    return ffi is not None and isinstance(target, ffi.Function)


def _places(spec: OpSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[str, int]] | None:
    """Parameter names with positions among the arguments; None where they do not fit plainly."""
    names = [p.name for p in spec.params]
    outputs = [p.name for p in spec.outputs]
    keywords = [outputs[0] if n == "out" and n not in names and len(outputs) == 1 else n for n in kwargs]
    given = names[: len(args)] + keywords
    if len(args) > len(names) or len(set(given)) != len(given) or not set(given) <= set(names):
        return None
    return [(name, i) for i, name in enumerate(given)]


def _fits(param: Param, given: Mapping[str, Any]) -> bool:
    """Whether the kernel takes the argument (or the default of the absent one) as it is."""
    if param.name not in given:
        left_out = param.optional or not param.required
        return left_out and param.kind is not ParamKind.OUT
    value = given[param.name]
    if param.kind is ParamKind.ATTR:
        return type(value) is param.type or (param.type is float and type(value) is int)
    return (value is None and param.optional) or is_direct(type(value))


def is_direct(kind: type) -> bool:
    """Whether compiled kernels take tensors of this type without a wrapper."""
    return kind is Tensor or exchange(kind) is not None


def _route(
    spec: OpSpec, op: FrozenOp, places: Mapping[str, int], given: Mapping[str, Any], count: int
) -> Route:
    absent = [p for p in spec.params if p.name not in places]
    index = {**places, **{p.name: count + i for i, p in enumerate(absent)}}
    changed = spec.outputs or tuple(p for p in spec.params if p.kind is ParamKind.INOUT)
    back = [i for i, p in enumerate(spec.params) if p in changed and given.get(p.name) is not None]
    tracked = [
        i for i, p in enumerate(spec.params)
        if p.kind is not ParamKind.ATTR and hasattr(given.get(p.name), "requires_grad")
    ]  # fmt: skip
    order = [index[p.name] for p in spec.params]
    pick = itemgetter(*order) if len(order) > 1 else lambda values: (values[order[0]],)
    constants = tuple(p.default for p in absent)
    return Route(op, op.target, pick, constants, tuple(tracked), tuple(back))
