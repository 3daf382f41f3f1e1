"""One name, several argument lists: the first form that a call fits is taken, and remembered by shape of
the call.

A form is a Python function whose parameters carry FastDeploy's names in FastDeploy's order. Which one a
call fits follows from the argument count and names, and from `when` where two forms have the same count.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fd_core.ops.guest import records

Form = Callable[..., Any]
When = Callable[[Mapping[str, Any]], bool]

_FORMS: dict[str, list[tuple[Form, When | None]]] = {}


def form(name: str, when: When | None = None) -> Callable[[Form], Form]:
    """Register a function as a form of the operator `name`; forms are tried in order of registration."""

    def register(function: Form) -> Form:
        _FORMS.setdefault(name, []).append((function, when))
        return function

    return register


def registered() -> frozenset[str]:
    return frozenset(_FORMS)


class Operator:
    """An operator under FastDeploy's name. TypeError lists its forms where a call fits none."""

    def __init__(self, name: str, forms: list[tuple[Form, When | None]]) -> None:
        self.__name__ = name
        self.__doc__ = "\n".join(self._lines(name, forms))
        self._forms = forms
        self._signatures = [inspect.signature(function) for function, _ in forms]
        self._chosen: dict[tuple[Any, ...], Form] = {}

    @staticmethod
    def _lines(name: str, forms: list[tuple[Form, When | None]]) -> list[str]:
        return [f"{name}{_plain(inspect.signature(f))}: {inspect.getdoc(f) or ''}" for f, _ in forms]

    def __repr__(self) -> str:
        return f"<operator {self.__name__}, {len(self._forms)} forms>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(self._forms) == 1:
            chosen = self._forms[0][0]
        else:
            key = (len(args), *kwargs, *map(_kind, args), *map(_kind, kwargs.values()))
            found = self._chosen.get(key)
            chosen = found if found is not None else self._choose(key, args, kwargs)
        return chosen(*map(without_gradient, args), **{k: without_gradient(v) for k, v in kwargs.items()})

    def _choose(self, key: tuple[Any, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Form:
        for (function, when), signature in zip(self._forms, self._signatures, strict=True):
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                continue
            if when is None or when(bound.arguments):
                self._chosen[key] = function
                return function
        have = f"{len(args)} positional arguments and {', '.join(kwargs) or 'no names'}"
        want = "\n  ".join(f"{self.__name__}{_plain(s)}" for s in self._signatures)
        raise TypeError(f"{self.__name__}: want one of\n  {want}\nhave {have}")


def _plain(signature: inspect.Signature) -> str:
    """Without annotations: names and defaults are what the caller needs."""
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(parameters))


def _kind(value: Any) -> Any:
    """What forms of equal length are told apart by: kind of value, element type of a tensor."""
    kind = getattr(value, "dtype", None)
    return type(value) if kind is None else (type(value), str(kind))


def without_gradient(value: Any) -> Any:
    """FastDeploy's operators take parameters as they are, and have no backward pass."""
    if getattr(value, "requires_grad", False) is True and records(type(value)):
        return value.detach()
    return value


def is_floating(value: Any) -> bool:
    """Whether a tensor's elements are floating-point numbers, in any library's spelling."""
    return "float" in str(getattr(value, "dtype", ""))


def operator(name: str) -> Operator:
    return Operator(name, _FORMS[name])
