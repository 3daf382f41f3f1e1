"""The public call of an op: bind, convert, allocate what was not given, run, hand back."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fd_core.api.kernel import OpSpec, Param, ParamKind
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.ops.catalogue import find
from fd_core.ops.compile_call import Route, compile_public
from fd_core.ops.guest import allocator, exporter, is_tensor, to_tensor, tracer_of
from fd_core.ops.route import find_route
from fd_core.ops.schema import REQUIRED, OpDef
from fd_core.ops.stream import on_guests_stream

if TYPE_CHECKING:
    from fd_core.host.session import Session

Values = dict[str, Any]
Types = tuple[type, ...]
Routes = dict[Types, Route | None]


class Calls:
    """The ways of calling one op on the current session: a route, or the long way, for every form of call
    (the types of all its arguments) that was met."""

    __slots__ = ("_definition", "_names", "_state", "_use", "op")

    def __init__(self, definition: OpDef) -> None:
        spec = definition.spec
        defaults = {p.name: p.default if may_be_left_out(p) else REQUIRED for p in spec.params}
        extra = {"out": REQUIRED} if spec.outputs and "out" not in defaults else {}
        self._definition = definition
        self._names = (*defaults, *extra)
        self._state: tuple[Session | None, Routes] = (None, {})
        self.op, self._use = compile_public(spec.name, defaults, extra, self.misfit)
        self._use(self.other)

    def other(self, *values: Any) -> Any:
        """A call of another form, or on another session, than the one before."""
        session: Session = sessions().current_session()
        form = (*map(type, values),)
        known, routes = self._state
        if known is not session or form not in routes:
            return self._first(session, form, values)
        route = routes[form]
        if route is None:
            return self.long(*values)
        self._use(route)
        return route(*values)

    def _first(self, session: Session, form: Types, values: Sequence[Any]) -> Any:
        """The long way checks everything; later calls of the same form may take a route."""
        result = self.long(*values)
        known, routes = self._state
        if known is not session or len(routes) >= _FORMS:
            routes = {}
        given = dict(zip(self._names, values, strict=True))
        routes[form] = find_route(self._definition, session, given, self.other, self.long)
        self._state = (session, routes)
        return result

    def long(self, *values: Any) -> Any:
        """A call that may have to be refused, needs a conversion, or goes to a tracer."""
        given = {name: v for name, v in zip(self._names, values, strict=True) if v is not REQUIRED}
        return call(self._definition, sessions().current_session(), (), given)

    def misfit(self, values: Sequence[Any], unknown: Mapping[str, Any]) -> Any:
        """TypeError for a call with more arguments than the op has, or with names that it does not have."""
        return bind(self._definition.spec, values, unknown)


def function(definition: OpDef) -> Callable[..., Any]:
    """The op as a function of its inputs, in order or by name.

    Outputs may follow, by position, by name, or all together as `out=`; those not given are
    allocated. Returns the outputs in the caller's tensor type: one bare, several as a list; an op
    without outputs returns the tensors it changed. Runs on `fd_core.current_platform`, on the current
    stream of the first guest tensor's library.
    """
    return named(Calls(definition).op, definition)


def named(op: Any, definition: OpDef) -> Callable[..., Any]:
    """`op` as help(), inspect and the tracers of array frameworks see it."""
    op.__name__ = op.__qualname__ = definition.name
    op.__module__ = "fd_core.ops"
    op.__doc__ = definition.spec.doc
    op.__signature__ = signature(definition.spec)
    op.definition = definition
    op.__dict__.update(_marks)
    _functions.append(op)
    made: Callable[..., Any] = op
    return made


_functions: list[Any] = []
_marks: dict[str, Any] = {}


def mark(name: str, value: Any) -> None:
    """Give every public op, those still to be made included, an attribute: by such a one an array
    framework's tracer is told to leave a function as it is."""
    _marks[name] = value
    for op in _functions:
        setattr(op, name, value)


#: Forms of a call that an op remembers; types made in a loop would otherwise pile up.
_FORMS = 64


@cache
def sessions() -> ModuleType:
    """Imported with the first call: `import fd_core.ops` needs no plug-in."""
    return importlib.import_module("fd_core.host.session")


def signature(spec: OpSpec) -> inspect.Signature:
    """As the caller sees it. What may be left out has a default, as far as Python's order allows."""
    parameters: list[inspect.Parameter] = []
    tail = True
    for param in reversed(spec.params):
        tail = tail and may_be_left_out(param)
        default = param.default if tail else inspect.Parameter.empty
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.insert(0, inspect.Parameter(param.name, kind, default=default))
    return inspect.Signature(parameters)


def may_be_left_out(param: Param) -> bool:
    return param.kind is ParamKind.OUT or param.optional or not param.required


@cache
def public_op(name: str) -> Callable[..., Any]:
    """The function of the op called `name`; AttributeError with the nearest names if there is none."""
    try:
        return function(find(name))
    except KeyError as error:
        raise AttributeError(f"fd_core.ops: {error.args[0]}") from None


def call(definition: OpDef, session: Session, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One call on an open session."""
    tracer = tracer_of((*args, *kwargs.values()))
    if tracer is not None:
        return tracer(definition, args, kwargs)
    spec = definition.spec
    given = bind(spec, args, kwargs)
    values = {p.name: _convert(spec, p, given.get(p.name, p.default), session) for p in spec.params}
    op = getattr(session.ops, spec.name)  # UnsupportedOpError before anything is allocated
    with on_guests_stream(given.values(), session.device.device):
        made = _allocate(definition, values, session, _example(spec, given))
        op(*values.values())
    return _hand_back(spec, {**given, **made}, values)


def _example(spec: OpSpec, given: Values) -> Any:
    """The first tensor given: results are of its type."""
    return next((given[p.name] for p in spec.params if is_tensor(given.get(p.name))), None)


def bind(spec: OpSpec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Values:
    """Arguments by parameter name; TypeError as Python's own for what is too much or missing."""
    names = [p.name for p in spec.params]
    if len(args) > len(names):
        raise TypeError(f"{spec.name}: want at most {len(names)} arguments, have {len(args)}")
    given = dict(zip(names, args, strict=False))
    for name, value in _named_outputs(spec, kwargs).items():
        if name not in names or name in given:
            problem = "given twice" if name in given else f"unknown; the parameters are {', '.join(names)}"
            raise TypeError(f"{spec.name}: argument {name!r} is {problem}")
        given[name] = value
    missing = [p.name for p in spec.inputs if not may_be_left_out(p) and p.name not in given]
    if missing:
        raise TypeError(f"{spec.name}: missing {', '.join(missing)}")
    return given


def _named_outputs(spec: OpSpec, kwargs: Mapping[str, Any]) -> Values:
    """`out=` stands for all outputs, unless a parameter has that very name."""
    outputs = [p.name for p in spec.outputs]
    if "out" not in kwargs or "out" in (p.name for p in spec.params) or not outputs:
        return dict(kwargs)
    rest = {name: value for name, value in kwargs.items() if name != "out"}
    twice = [name for name in outputs if rest.get(name) is not None]
    if twice:
        raise TypeError(f"{spec.name}: argument {twice[0]!r} is given twice, by its name and by out=")
    values = kwargs["out"] if isinstance(kwargs["out"], list | tuple) else [kwargs["out"]]
    if len(values) != len(outputs):
        raise TypeError(f"{spec.name}: out= wants {len(outputs)} tensors, have {len(values)}")
    return {**rest, **dict(zip(outputs, values, strict=True))}


def _convert(spec: OpSpec, param: Param, value: Any, session: Session) -> Any:
    """A Tensor on the session's device, or an attribute of the declared type."""
    label = f"{spec.name}.{param.name}"
    if param.kind is ParamKind.ATTR:
        value = param.default if value is None and not param.required else value
        return attribute(label, param, value)
    if value is None and (param.optional or param.kind is ParamKind.OUT):
        return None
    return on_device(label, value, session, param.kind is not ParamKind.IN)


def on_device(label: str, value: Any, session: Session, writable: bool = False) -> Tensor:
    """Anybody's tensor as ours. TypeError or ValueError, with `label`, for what is none, is read-only
    where it is to be written, or lies on another device."""
    device = session.device.device
    try:
        tensor = to_tensor(value, session.platform, device, writable)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label}: {error}") from error
    if (tensor.device.code, tensor.device.index) != (device.code, device.index):
        fix = f"copy it there first, or open the session on {tensor.device}"
        raise ValueError(f"{label}: want a tensor on {device}, have one on {tensor.device}; fix: {fix}")
    return tensor


def attribute(label: str, param: Param, value: Any) -> Any:
    """NumPy scalars become Python's; an integer is fine where a float is wanted, not the reverse."""
    value = value.item() if hasattr(value, "item") and not is_tensor_like(value) else value
    kind = param.type
    if kind not in (bool, int, float, str) or isinstance(value, kind):
        return value
    if kind is float and isinstance(value, int):
        return float(value)
    raise TypeError(f"{label}: want {kind.__name__}, have {value!r}")


def is_tensor_like(value: Any) -> bool:
    return is_tensor(value) and getattr(value, "ndim", 0) > 0


def _allocate(definition: OpDef, values: Values, session: Session, example: Any) -> Values:
    """Fill in the outputs that the caller left out; returned as the library of `example` sees them."""
    outputs = definition.spec.outputs
    made: Values = {}
    if all(values[p.name] is not None for p in outputs):
        return made
    device = session.device.device
    new, export = allocator(example, session.platform, device), exporter(example)
    for param, spec in zip(outputs, infer(definition, values), strict=True):
        if values[param.name] is None:
            result = _strided(spec, session) if hasattr(spec, "strides") else new(spec)
            values[param.name] = to_tensor(result, session.platform, device, True)
            made[param.name] = export(result) if isinstance(result, Tensor) else result
    return made


def _strided(spec: Any, session: Session) -> Tensor:
    """An output in the memory order that its spec asks for (`strides`, `span` in elements)."""
    flat = session.platform.empty(TensorSpec((spec.span,), spec.dtype))
    return Tensor(flat.ptr, spec.shape, spec.dtype, flat.storage, spec.strides)


def infer(definition: OpDef, values: Values) -> Sequence[TensorSpec]:
    """The shape rule on bound arguments."""
    inputs = {p.name: values[p.name] for p in definition.spec.inputs}
    return infer_specs(definition, {k: v.spec if isinstance(v, Tensor) else v for k, v in inputs.items()})


def infer_specs(definition: OpDef, described: Mapping[str, Any]) -> Sequence[TensorSpec]:
    """The shape rule; ValueError names the shapes that nothing follows from."""
    try:
        return definition.infer(**described)
    except (IndexError, TypeError, ValueError) as error:
        shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in described.items() if hasattr(v, "shape"))
        raise ValueError(f"{definition.name}: no output shape follows from {shapes}: {error}") from error


def _hand_back(spec: OpSpec, given: Values, values: Values) -> Any:
    changed = spec.outputs or tuple(p for p in spec.params if p.kind is ParamKind.INOUT)
    results = [given[p.name] for p in changed if values[p.name] is not None]
    return results[0] if len(results) == 1 else results or None
