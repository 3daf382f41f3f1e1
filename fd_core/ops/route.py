"""The short way of a public call: tensors that a compiled kernel takes as they are.

What a call needs (what is made, what is returned) depends only on the types of its arguments, so it is
worked out once per such form and kept as a route, a function of its own (`compile_call.py`).
The kernel itself checks shapes, element types and devices, and runs on the guest's current stream
(TVM-FFI asks the type's exchange table). Every other call takes the long way in `call.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fd_core.api.dtype import DType, dtype
from fd_core.api.kernel import OpSpec, Param, ParamKind
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.host.dispatch import FrozenOp
from fd_core.ops.compile_call import Form, Route, compile_route
from fd_core.ops.exchange import exchange
from fd_core.ops.guest import Allocator, allocator, records
from fd_core.ops.schema import REQUIRED, OpDef

if TYPE_CHECKING:
    from fd_core.host.session import Session


_types: dict[Any, DType] = {}


def describe(value: Any) -> TensorSpec:
    """A tensor as the shape rule wants it; ValueError for an element type that the catalogue lacks."""
    if type(value) is Tensor:
        return value.spec
    kind = value.dtype
    if kind not in _types:
        _types[kind] = dtype(str(kind).rpartition(".")[2])
    return TensorSpec(tuple(value.shape), _types[kind])


def find_route(
    definition: OpDef, session: Session, values: Mapping[str, Any], other: Route, long: Route
) -> Route | None:
    """The route of calls of this form; None if they must take the long way.

    `values` by parameter of the public function, `REQUIRED` where left out. `other` is called instead for
    another form or session, `long` for a call that the long way refuses.
    """
    from fd_core.host import session as sessions

    spec = definition.spec
    op = session.ops.table.get(spec.name)
    if type(op) is not FrozenOp or not _is_compiled(op.target):
        return None
    places = _places(spec, values)
    given = {name: values[place] for name, place in places.items()}
    if not given or not all(_fits(p, given[p.name]) for p in spec.params):
        return None
    new = _allocator(spec, session, given)
    if new is None and any(given[p.name] is None for p in spec.outputs):
        return None
    names = {"_sessions": sessions, "_session": session, "_op": op, "_target": op.target}
    names |= {"_other": other, "_long": long, "_records": records}
    names |= {"_infer": definition.infer, "_describe": describe, "_new": new, "_spec": TensorSpec}
    return compile_route(spec.name, _form(spec, places, values), names)


def _allocator(spec: OpSpec, session: Session, given: Mapping[str, Any]) -> Allocator | None:
    """None where the first tensor's library has no allocator in its table."""
    example = next((given[p.name] for p in spec.inputs if is_direct(type(given[p.name]))), None)
    table = exchange(type(example))
    if example is None or not (type(example) is Tensor or (table and table.allocates)):
        return None
    return allocator(example, session.platform, session.device.device)


def _is_compiled(target: Any) -> bool:
    """Whether the target is TVM-FFI's function, which takes foreign tensors."""
    ffi = sys.modules.get("tvm_ffi")
    return ffi is not None and isinstance(target, ffi.Function)


def _places(spec: OpSpec, values: Mapping[str, Any]) -> dict[str, str]:
    """Where each parameter's value stands: under its own name, or under `out`. Empty where `out=` holds
    several."""
    places = {p.name: p.name for p in spec.params}
    if "out" in places or values.get("out", REQUIRED) is REQUIRED:
        return places
    only = [p.name for p in spec.outputs]
    return {**places, only[0]: "out"} if len(only) == 1 and values[only[0]] is None else {}


def _fits(param: Param, value: Any) -> bool:
    """Whether the kernel takes the argument as it is."""
    if param.kind is ParamKind.ATTR:
        return type(value) is param.type or (param.type is float and type(value) is int)
    left_out = value is None and (param.optional or param.kind is ParamKind.OUT)
    return left_out or is_direct(type(value))


def is_direct(kind: type) -> bool:
    """Whether compiled kernels take tensors of this type without a wrapper."""
    return kind is Tensor or exchange(kind) is not None


def _form(spec: OpSpec, places: Mapping[str, str], values: Mapping[str, Any]) -> Form:
    given = {p.name: values[places[p.name]] for p in spec.params}
    tensors = [p.name for p in spec.params if p.kind is not ParamKind.ATTR]
    changed = spec.outputs or tuple(p for p in spec.params if p.kind is ParamKind.INOUT)
    back = [p.name for p in changed if p.kind is ParamKind.OUT or given[p.name] is not None]
    return Form(
        types={name: type(value) for name, value in values.items()},
        arguments=[places[p.name] for p in spec.params],
        tracked=[places[name] for name in tensors if hasattr(given[name], "requires_grad")],
        inputs={p.name: is_direct(type(given[p.name])) for p in spec.inputs},
        missing={places[p.name]: i for i, p in enumerate(spec.outputs) if given[p.name] is None},
        results=[places[name] for name in back],
    )
