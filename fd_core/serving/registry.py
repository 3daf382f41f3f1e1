"""Named parser classes: ours, those of plug-ins, and those registered by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def normal(name: str) -> str:
    """Names are the same with `_` and `-`, at registration and at look-up."""
    return name.replace("_", "-").lower()


class ParserRegistry(Generic[T]):
    """One kind of parser. `base` is the class they must derive from."""

    def __init__(self, kind: str, base: type[T]) -> None:
        self.kind = kind
        self._base = base
        self._found: dict[str, type[T]] = {}

    def register_module(
        self, name: str | list[str] | None = None, force: bool = True, module: type[T] | None = None
    ) -> Callable[[type[T]], type[T]] | type[T]:
        """As a decorator, or directly with `module`. No name: the class name.

        Raises TypeError for a bad `force`, `name` or class, KeyError for a taken name without `force`.
        """
        if not isinstance(force, bool):
            raise TypeError(f"register_module.force: want a bool, found {type(force).__name__}")
        names = _names(name)
        if module is not None:
            return self._add(names, force, module)
        return lambda cls: self._add(names, force, cls)

    def _add(self, names: list[str] | None, force: bool, cls: type[T]) -> type[T]:
        if not isinstance(cls, type) or not issubclass(cls, self._base):
            raise TypeError(f"{self.kind} parser: want a subclass of {self._base.__name__}, found {cls!r}")
        for name in map(normal, names or [cls.__name__]):
            if name in self._found and not force:
                raise KeyError(
                    f"{self.kind} parser {name!r} is registered already by {self._found[name].__name__}"
                )
            self._found[name] = cls
        return cls

    def add_all(self, plugin: dict[str, Any]) -> None:
        """What a plug-in's hook returned; a name that is taken is refused."""
        for name, cls in plugin.items():
            self.register_module(name, force=False, module=cls)

    def get(self, name: str) -> type[T]:
        found = self._found.get(normal(name))
        if found is None:
            raise KeyError(f"{self.kind} parser: want one of {', '.join(self.names())}, found {name!r}")
        return found

    def names(self) -> list[str]:
        return sorted(self._found)


def _names(name: str | Iterable[str] | None) -> list[str] | None:
    if name is None:
        return None
    names = [name] if isinstance(name, str) else name
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise TypeError(f"register_module.name: want a name or a list of names, found {name!r}")
    return names
