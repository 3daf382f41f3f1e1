"""Ops inside Paddle's static graphs (`paddle.jit.to_static`, in either of its modes).

Importing this module lets `fd_core.ops` and `fd_core.compat.fastdeploy` be called on values of a graph;
import it before a graph is built. An op that only makes tensors becomes a Python operator of Paddle, with
shapes and types from the op's own rule; one that changes tensors becomes `in_place.py`'s operator. What can
be checked without data is checked while the graph is built: Paddle ends the process when inference raises.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import paddle
from paddle.jit.dy2static.utils import TransformOptions

from fd_core.api.dtype import dtype
from fd_core.api.kernel import OpSpec, Param, ParamKind
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.compat.fastdeploy.overload import Operator
from fd_core.host.dispatch import GuardedOp
from fd_core.host.errors import UnsupportedOpError
from fd_core.host.session import current_session
from fd_core.ops.call import attribute, bind, infer_specs, mark, public_op
from fd_core.ops.catalogue import find
from fd_core.ops.guest import register_tracer
from fd_core.ops.schema import OpDef
from fd_core.paddle.attention import ForwardMeta
from fd_core.paddle.in_place import call_in_place, memory, operator
from fd_core.paddle.layer import Layer
from fd_core.paddle.tensors import name_of

_log = logging.getLogger("fd.paddle")
Value = paddle.pir.Value
#: What a dynamic dimension (-1) is taken for when shapes are inferred: results that differ are dynamic.
#: Divisible by all small numbers, as the sizes that shape rules divide are.
_STAND_INS = (5040, 10080)

Attributes = tuple[tuple[str, Any], ...]


def traced(definition: OpDef, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The call as an operator of the graph; errors name op, argument, want and have."""
    spec = definition.spec
    given = _without_outputs(spec, bind(spec, args, kwargs))
    tensors = {p.name: given[p.name] for p in spec.inputs if isinstance(given.get(p.name), Value)}
    attributes = tuple(
        (p.name, _attribute(spec, p, given, tensors)) for p in spec.inputs if p.name not in tensors
    )
    metas = {name: _meta(spec, name, value) for name, value in tensors.items()}
    results = shapes(definition, metas, attributes)
    _check_types(spec, metas)
    if any(p.kind is ParamKind.INOUT and p.name in tensors for p in spec.params):
        return _change(definition, tensors, attributes, results)
    made = _operator(spec.name, tuple(tensors), attributes)(*tensors.values())
    return list(made) if isinstance(made, tuple | list) else made


def _without_outputs(spec: OpSpec, given: dict[str, Any]) -> dict[str, Any]:
    named = [p.name for p in spec.outputs if given.get(p.name) is not None]
    if named:
        fix = "use the result: a graph's values are written once"
        raise ValueError(f"{spec.name}.{named[0]}: want no output inside a graph, have one; fix: {fix}")
    return given


def _attribute(spec: OpSpec, param: Param, given: Mapping[str, Any], tensors: Mapping[str, Any]) -> Any:
    label, value = f"{spec.name}.{param.name}", given.get(param.name, param.default)
    if param.kind is ParamKind.ATTR:
        return attribute(label, param, param.default if value is None and not param.required else value)
    if value is None and param.optional:
        return None
    raise TypeError(
        f"{label}: want a value of the graph ({', '.join(tensors)} are), have {type(value).__name__}"
    )


def _meta(spec: OpSpec, name: str, value: Any) -> TensorSpec:
    try:
        return TensorSpec(tuple(value.shape), dtype(str(value.dtype).rpartition(".")[2].lower()))
    except ValueError as error:
        raise TypeError(f"{spec.name}.{name}: {error}") from error


def _check_types(spec: OpSpec, metas: Mapping[str, TensorSpec]) -> None:
    """What the only kernel's record refuses; where there are several, the choice is made at run time."""
    op = getattr(current_session().ops, spec.name)
    if isinstance(op, GuardedOp):
        return
    verdict = op.kernel.requires.check_dtypes(spec.name, {name: meta.dtype for name, meta in metas.items()})
    if not verdict.ok:
        raise UnsupportedOpError(f"op {spec.name!r} in a graph: {verdict}", verdict)


def shapes(definition: OpDef, metas: Mapping[str, TensorSpec], attributes: Attributes) -> list[TensorSpec]:
    """Output specs with -1 for dynamic dimensions. ValueError as `fd_core.ops` gives it."""
    first, second = (
        infer_specs(definition, {**{n: _filled(m, stand_in) for n, m in metas.items()}, **dict(attributes)})
        for stand_in in _STAND_INS
    )
    return [
        TensorSpec(tuple(a if a == b else -1 for a, b in zip(x.shape, y.shape, strict=True)), x.dtype)
        for x, y in zip(first, second, strict=True)
    ]


def _filled(meta: TensorSpec, stand_in: int) -> TensorSpec:
    return TensorSpec(tuple(stand_in if n < 0 else n for n in meta.shape), meta.dtype)


# -- ops that only make tensors: Paddle's Python operators ------------------------------------------------

_numbers = itertools.count()


@cache
def _operator(op: str, names: tuple[str, ...], attributes: Attributes) -> Callable[..., Any]:
    """The operator for one set of tensors and attributes."""
    definition = find(op)
    public, rest = public_op(op), dict(attributes)

    def run(*tensors: Any) -> Any:
        made = public(**dict(zip(names, tensors, strict=True)), **rest)
        return tuple(made) if isinstance(made, list) else made

    def metas(*found: Any) -> Any:
        described = {
            name: _meta(definition.spec, name, meta) for name, meta in zip(names, found, strict=True)
        }
        made = tuple(
            paddle.static.MetaTensor(shape=list(s.shape), dtype=getattr(paddle, name_of(s.dtype)))
            for s in shapes(definition, described, attributes)
        )
        return made[0] if len(made) == 1 else made

    return paddle.static.register_op(  # type: ignore[no-any-return]
        _fixed(run), name=f"fd_core_{definition.name}_{next(_numbers)}", infer_meta=_fixed(metas),
        input_names=list(names), output_names=[p.name for p in definition.spec.outputs],
    )  # fmt: skip


def _fixed(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` with named parameters, which Paddle's registration asks for; those left out are not passed."""

    def positional(
        a0: Any = None, a1: Any = None, a2: Any = None, a3: Any = None, a4: Any = None, a5: Any = None,
        a6: Any = None, a7: Any = None, a8: Any = None, a9: Any = None, a10: Any = None, a11: Any = None,
        a12: Any = None, a13: Any = None, a14: Any = None, a15: Any = None,
    ) -> Any:  # fmt: skip
        every = (a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15)
        return call(*(a for a in every if a is not None))

    return positional


# -- ops that change tensors ------------------------------------------------------------------------------


def _change(
    definition: OpDef, tensors: Mapping[str, Any], attributes: Attributes, results: Sequence[TensorSpec]
) -> Any:
    """Outputs are made by Paddle beforehand and changed like the others."""
    spec = definition.spec
    fresh = {p.name: _empty(spec, p.name, meta) for p, meta in zip(spec.outputs, results, strict=True)}
    kinds = {p.name: p.kind for p in spec.params}
    changed = {n: t for n, t in tensors.items() if kinds[n] is ParamKind.INOUT} | fresh
    read = {n: t for n, t in tensors.items() if n not in changed}
    target = getattr(current_session().ops, spec.name)
    names, rest = [p.name for p in spec.params], dict(attributes)

    def work(first: list[Tensor], second: list[Tensor]) -> None:
        values = {**rest, **dict(zip(changed, first, strict=True)), **dict(zip(read, second, strict=True))}
        target(*(values[name] for name in names))

    done = call_in_place(work, list(changed.values()), list(read.values()))
    after = dict(zip(changed, done, strict=True))
    back = [after[p.name] for p in spec.outputs] or list(after.values())
    return back[0] if len(back) == 1 else back


def _empty(spec: OpSpec, name: str, meta: TensorSpec) -> Any:
    if -1 in meta.shape:
        have = list(meta.shape)
        fix = "give the graph fixed shapes: this op changes tensors and makes others"
        raise ValueError(f"{spec.name}.{name}: want a fixed shape inside a graph, have {have}; fix: {fix}")
    return memory(meta.shape, name_of(meta.dtype))


def _install() -> None:
    """Values of a graph go to `traced`; Paddle's two tracers take operators and layers as they are."""
    try:
        operator()
    except RuntimeError as error:
        _log.warning("ops that change tensors cannot be used in graphs: %s", error)
    register_tracer(Value, traced)
    modes = TransformOptions.ToStaticMode
    name, both, ast = TransformOptions.TRANSFORM_OPTIONS_ATTR_NAME, modes.SOT | modes.AST, modes.AST
    mark(name, _leave_alone(both))
    setattr(Operator, name, _leave_alone(both))
    for kind in (Layer, ForwardMeta):
        setattr(kind, name, _leave_alone(ast))


def _leave_alone(modes: Any) -> Any:
    return TransformOptions().with_skip_transform_mode(modes)


_install()
