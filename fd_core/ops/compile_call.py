"""Python functions made for one op, so that a call pays for no loop and no packing of its arguments.

Each is a few lines of text about the op's own parameters, compiled once as dataclasses does it: the public
function, and a route for every form of call (the types of all arguments, those left out by their
defaults). The names that the text uses beside the parameters start with an underscore.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Takes the op's arguments in order (and `out=`, where that stands for the outputs): the call's result.
Route = Callable[..., Any]

_PUBLIC = """\
def {op}({parameters}, *_more, {extra}**_unknown):
    if _more or _unknown:
        return _misfit(({names}*_more,), _unknown)
    return _route({every})
"""

_ROUTE = """\
def {op}({names}):
    if _sessions.current is not _session or {other_types}:
        return _other({names})
{refusals}{outputs}
    _op.calls += 1
    _target({arguments})
    return {results}
"""

_GRADIENTS = """\
    if {tracked}:
        return _long({names})
"""

_OUTPUTS = """\
    try:
        _specs = _infer({inputs})
    except (AttributeError, IndexError, TypeError, ValueError):
        return _long({names})
    if {unusual}:
        return _long({names})
    {made}
"""


def compile_public(
    op: str, defaults: Mapping[str, Any], extra: Mapping[str, Any], misfit: Callable[..., Any]
) -> tuple[Callable[..., Any], Callable[[Route], None]]:
    """The op's function, and what sets the route that it takes (before its first call).

    `defaults` by parameter, `extra` those of more parameters that are given by keyword only;
    `misfit(values, unknown)` answers a call with more arguments or other names.
    """
    names = {"_default": {**defaults, **extra}, "_misfit": misfit}
    text = _PUBLIC.format(
        op=op,
        parameters=", ".join(f"{name}=_default[{name!r}]" for name in defaults),
        extra="".join(f"{name}=_default[{name!r}], " for name in extra),
        names="".join(f"{name}, " for name in defaults),
        every=", ".join([*defaults, *extra]),
    )

    def use(route: Route) -> None:
        names["_route"] = route

    return _compiled(op, text, names), use


@dataclass(frozen=True, slots=True)
class Form:
    """What all calls of one form have in common, by the names of the public function's parameters."""

    types: Mapping[str, type]  # of all of them, in order
    arguments: Sequence[str]  # the kernel's, in order
    tracked: Sequence[str]  # tensors that may require a gradient
    inputs: Mapping[str, bool]  # what the shape rule wants; True: a tensor
    missing: Mapping[str, int]  # outputs to make: which of the rule's
    results: Sequence[str]  # what is handed back


def compile_route(op: str, form: Form, names: dict[str, Any]) -> Route:
    """The route of one form.

    `names`: `_sessions` (a module) and the `_session` that the route belongs to, `_op` and its `_target`;
    `_other(*values)` for another form or session, `_long(*values)` for what the long way has to refuse,
    `_records(type)`: whether gradients are recorded. For outputs that are made: the shape rule `_infer`,
    `_describe(tensor)` as the rule wants it, `_new(spec)` and the `_spec` type that it takes.
    """
    every = ", ".join(form.types)
    names["_type"] = type
    names |= {f"_{name}_type": kind for name, kind in form.types.items()}
    text = _ROUTE.format(
        op=op,
        names=every,
        other_types=" or ".join(f"_type({name}) is not _{name}_type" for name in form.types),
        refusals=_refusals(form, every),
        outputs=_outputs(form, every),
        arguments=", ".join(form.arguments),
        results=_handed_back(form.results),
    )
    return _compiled(op, text, names)


def _refusals(form: Form, every: str) -> str:
    tracked = " or ".join(f"{name}.requires_grad and _records(_{name}_type)" for name in form.tracked)
    return _GRADIENTS.format(tracked=tracked, names=every) if tracked else ""


def _outputs(form: Form, every: str) -> str:
    """All specs are looked at before anything is made."""
    if not form.missing:
        return ""
    inputs = (
        f"{name}=_describe({name})" if tensor else f"{name}={name}" for name, tensor in form.inputs.items()
    )
    unusual = (f"_type(_specs[{number}]) is not _spec" for number in form.missing.values())
    made = (f"{name} = _new(_specs[{number}])" for name, number in form.missing.items())
    return _OUTPUTS.format(
        inputs=", ".join(inputs), names=every, unusual=" or ".join(unusual), made="; ".join(made)
    )


def _handed_back(results: Sequence[str]) -> str:
    """One bare, several as a list."""
    return results[0] if len(results) == 1 else f"[{', '.join(results)}]" if results else "None"


def _compiled(op: str, text: str, names: dict[str, Any]) -> Callable[..., Any]:
    names["__name__"] = __name__
    exec(compile(text, f"<fd_core.ops.{op}>", "exec"), names)
    made: Callable[..., Any] = names[op]
    return made
