"""The short way of a public call: tensors that a compiled kernel takes as they are.

What a call needs (order of the arguments, defaults, what is returned) depends only on the types of its
arguments and the names of its keywords, so it is worked out once per such form and kept as a route.
The kernel itself checks shapes, element types and devices, and runs on the guest's current stream
(TVM-FFI asks the type's exchange table). Every other call takes the long way in `call.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from fd_core.api.dtype import DType, dtype
from fd_core.api.kernel import OpSpec, Param, ParamKind
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.host.dispatch import FrozenOp
from fd_core.ops.exchange import exchange
from fd_core.ops.guest import Allocator, allocator, records
from fd_core.ops.schema import Infer, OpDef

if TYPE_CHECKING:
    from fd_core.host.session import Session


@dataclass(frozen=True, slots=True)
class Maker:
    """Allocates the outputs that a form of call leaves out, from the op's shape rule."""

    infer: Infer
    inputs: tuple[tuple[str, int], ...]  # name and position of what the shape rule wants
    missing: tuple[tuple[int, int], ...]  # position of an output in the schema, and among the outputs
    new: Allocator

    def fill(self, values: list[Any]) -> bool:
        """Whether it could; False before anything is made, so that the long way says what is wrong."""
        try:
            specs = self.infer(**{name: describe(values[i]) for name, i in self.inputs})
        except (IndexError, TypeError, ValueError):
            return False
        if any(type(specs[number]) is not TensorSpec for _, number in self.missing):
            return False
        for position, number in self.missing:
            values[position] = self.new(specs[number])
        return True


_types: dict[Any, DType] = {}


def describe(value: Any) -> Any:
    """A tensor as the shape rule wants it, an attribute as it is; TypeError for an unknown type."""
    if type(value) is Tensor:
        return value.spec
    if not hasattr(value, "dtype"):
        return value
    kind = value.dtype
    if kind not in _types:
        _types[kind] = dtype(str(kind).rpartition(".")[2])
    return TensorSpec(tuple(value.shape), _types[kind])


#: What a route answers, with nothing done, to a call that the long way refuses.
REFUSED = object()

#: The call's result, or REFUSED, from its arguments: positional ones, then those by name.
Route = Callable[[tuple[Any, ...]], Any]


def run_route(
    op: FrozenOp,
    arrange: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None,
    constants: tuple[Any, ...],
    tracked: tuple[int, ...],
    results: tuple[int, ...],
    maker: Maker | None,
) -> Route:
    """`arrange` orders (arguments..., constants...) as the schema where they are not; `tracked` are
    positions of tensors that may require a gradient, `results` of those that are handed back.

    A function over local names: that is what each call pays for, on top of the kernel's own.
    """
    target = op.target
    only = results[0] if len(results) == 1 else None

    def route(values: Any) -> Any:
        if constants:
            values = (*values, *constants)
        if arrange is not None:
            values = arrange(values)
        for position in tracked:
            if values[position].requires_grad and records(type(values[position])):
                return REFUSED
        if maker is not None:
            values = list(values)
            if not maker.fill(values):
                return REFUSED
        op.calls += 1
        target(*values)
        return values[only] if only is not None else [values[i] for i in results] or None

    return route


def refuse(values: tuple[Any, ...]) -> Any:
    """The route of calls that must take the long way."""
    return REFUSED


def find_route(
    definition: OpDef, session: Session, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Route | None:
    """The route of calls of this form; None if they must take the long way."""
    spec = definition.spec
    op = session.ops.table.get(spec.name)
    if type(op) is not FrozenOp or not _is_compiled(op.target):
        return None
    places = _places(spec, args, kwargs)
    if places is None:
        return None
    given = {name: (args[i] if i < len(args) else [*kwargs.values()][i - len(args)]) for name, i in places}
    if not all(_fits(p, given) for p in spec.params):
        return None
    maker = _maker(definition, session, given)
    if maker is None and any(given.get(p.name) is None for p in spec.outputs):
        return None
    return _route(spec, op, dict(places), given, len(args) + len(kwargs), maker)


def _maker(definition: OpDef, session: Session, given: Mapping[str, Any]) -> Maker | None:
    """None where nothing is missing, or where the first tensor's library has no allocator in its table."""
    spec = definition.spec
    outputs = [(i, p.name) for i, p in enumerate(spec.params) if p.kind is ParamKind.OUT]
    missing = [(i, name) for i, name in outputs if given.get(name) is None]
    example = next((given[p.name] for p in spec.inputs if is_direct(type(given.get(p.name)))), None)
    table = exchange(type(example))
    if not missing or example is None or not (type(example) is Tensor or (table and table.allocates)):
        return None
    new = allocator(example, session.platform, session.device.device)
    numbers = {name: number for number, (_, name) in enumerate(outputs)}
    inputs = tuple((p.name, i) for i, p in enumerate(spec.params) if p.kind is not ParamKind.OUT)
    return Maker(definition.infer, inputs, tuple((i, numbers[name]) for i, name in missing), new)


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
        return param.optional or not param.required or param.kind is ParamKind.OUT
    value = given[param.name]
    if param.kind is ParamKind.ATTR:
        return type(value) is param.type or (param.type is float and type(value) is int)
    left_out = value is None and (param.optional or param.kind is ParamKind.OUT)
    return left_out or is_direct(type(value))


def is_direct(kind: type) -> bool:
    """Whether compiled kernels take tensors of this type without a wrapper."""
    return kind is Tensor or exchange(kind) is not None


def _route(
    spec: OpSpec,
    op: FrozenOp,
    places: Mapping[str, int],
    given: Mapping[str, Any],
    count: int,
    maker: Maker | None,
) -> Route:
    absent = [p for p in spec.params if p.name not in places]
    index = {**places, **{p.name: count + i for i, p in enumerate(absent)}}
    changed = spec.outputs or tuple(p for p in spec.params if p.kind is ParamKind.INOUT)
    back = [
        i for i, p in enumerate(spec.params)
        if p in changed and (p.kind is ParamKind.OUT or given.get(p.name) is not None)
    ]  # fmt: skip
    tracked = [
        i for i, p in enumerate(spec.params)
        if p.kind is not ParamKind.ATTR and hasattr(given.get(p.name), "requires_grad")
    ]  # fmt: skip
    order = [index[p.name] for p in spec.params]
    arrange = None if order == [*range(len(order))] else itemgetter(*order)  # not of one: it is in order
    constants = tuple(p.default for p in absent)
    return run_route(op, arrange, constants, tuple(tracked), tuple(back), maker)
