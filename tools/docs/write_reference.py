"""Writes docs/api.md: the plug-in interface, every public name of fd_core.api with its docstring.

python tools/docs/write_reference.py           # a test compares file and code
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fd_core.api
from fd_core.api.version import PLUGIN_API

TARGET = Path(__file__).parents[2] / "docs" / "api.md"
HEAD = f"""# Plug-in API {PLUGIN_API[0]}.{PLUGIN_API[1]}

Everything a plug-in imports of fd-core, by module, written by `python tools/docs/write_reference.py` from
signatures and docstrings. [plugins.md](plugins.md) shows how they are used, [ops.md](ops.md) has the
contract of every op. Hooks are functions decorated with `fd_core.api.hookspecs.hookimpl`. C++ headers lie
in `fd_core/include/fd/`: `abi.h` (exports over TVM-FFI's C ABI), `check.h` (argument checks), `stamp.h`.
"""
#: In the order in which an author meets them; others follow.
ORDER = ("hookspecs", "manifest", "version", "verdict", "device", "platform", "tensor", "dtype", "kernel")
WIDTH = 100


class _Bare(str):
    """An annotation as it is written, without quotes."""

    def __repr__(self) -> str:
        return str(self)


def modules() -> list[ModuleType]:
    found = [one.name for one in pkgutil.iter_modules(fd_core.api.__path__)]
    names = [*ORDER, *sorted(set(found) - set(ORDER))]
    return [importlib.import_module(f"fd_core.api.{name}") for name in names]


def members(owner: ModuleType) -> Iterator[tuple[str, Any]]:
    """Public classes, functions and constants that the module defines, in its order."""
    constants = assigned(owner)
    for name, value in vars(owner).items():
        code = inspect.isclass(value) or inspect.isfunction(value)
        mine = value.__module__ == owner.__name__ if code else name in constants
        if mine and not name.startswith("_"):
            yield name, value


def assigned(module: ModuleType) -> set[str]:
    """Names in capitals that its source assigns (imported ones belong to another module)."""
    targets = []
    for node in ast.parse(inspect.getsource(module)).body:
        targets += node.targets if isinstance(node, ast.Assign) else []
        targets += [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name) and target.id.isupper()}


def call(name: str, function: Any) -> str:
    """`name(...)`, a parameter a line where it would be long."""
    rows: list[str] = []
    text = f"{name}{signature(function)}"
    if len(text) <= WIDTH:
        return text
    head, _, tail = text.removeprefix(f"{name}(").rpartition(") -> ")
    for part in head.split(", "):
        closed = not rows or rows[-1].count("[") == rows[-1].count("]")
        rows = [*rows, part] if closed else [*rows[:-1], f"{rows[-1]}, {part}"]
    return f"{name}(\n" + "".join(f"    {row},\n" for row in rows) + f") -> {tail}"


def signature(function: Any) -> str:
    """Without `self` and `cls`, annotations as they are written."""
    found = inspect.signature(function)
    rows = [p for p in found.parameters.values() if p.name not in ("self", "cls")]
    rows = [p if p.annotation is p.empty else p.replace(annotation=_bare(p.annotation)) for p in rows]
    result = found.return_annotation
    return str(
        found.replace(parameters=rows, return_annotation=result if result is found.empty else _bare(result))
    )


def _bare(annotation: Any) -> Any:
    return _Bare(annotation) if isinstance(annotation, str) else annotation


def module_text(module: ModuleType) -> str:
    rows = list(members(module))
    parts = [f"## {module.__name__}", inspect.getdoc(module) or ""]
    for name, value in rows:
        if inspect.isclass(value):
            parts += class_text(name, value)
        elif inspect.isfunction(value):
            parts += [f"### {name}", block(call(name, value)), inspect.getdoc(value) or ""]
    constants = [f"`{name} = {value!r}`" for name, value in rows if isinstance(value, str | int | tuple)]
    return "\n\n".join(part for part in [*parts, ", ".join(constants)] if part)


def block(text: str) -> str:
    return f"```\n{text}\n```"


def class_text(name: str, cls: type) -> Iterator[str]:
    bases = ", ".join(b.__name__ for b in cls.__bases__ if b is not object and b.__name__[0] != "_")
    yield f"### {name}" + (f" ({bases})" if bases else "")
    if issubclass(cls, enum.Enum):
        yield own_doc(cls)
        yield ", ".join(f"`{member.name}`" for member in cls)
        return
    lines = [*constructor(name, cls), *field_lines(cls)]
    if lines:
        yield block("\n".join(lines))
    yield own_doc(cls)
    lines = [
        method_text(method, value) for method, value in vars(cls).items() if not method.startswith("_")
    ]
    yield "\n".join(line for line in lines if line)


def constructor(name: str, cls: type) -> list[str]:
    """How it is called, where it says so itself (a dataclass is called with its fields)."""
    own = vars(cls).get("__init__")
    mine = (
        inspect.isfunction(own) and own.__module__ == cls.__module__ and not dataclasses.is_dataclass(cls)
    )
    return (
        [call(name, own).removesuffix(" -> None")]
        if mine and not getattr(cls, "_is_protocol", False)
        else []
    )


def own_doc(cls: type) -> str:
    """A class's own docstring; empty for the text that dataclasses make up."""
    text = inspect.cleandoc(vars(cls).get("__doc__") or "")
    return "" if text.startswith(f"{cls.__name__}(") else text


def field_lines(cls: type) -> Iterator[str]:
    """Annotated fields with their defaults."""
    for name, kind in vars(cls).get("__annotations__", {}).items():
        if not name.startswith("_"):
            default = _default(cls, name)
            yield f"{name}: {kind}" + ("" if default is dataclasses.MISSING else f" = {default}")


def _default(cls: type, name: str) -> Any:
    models: dict[str, Any] = getattr(cls, "model_fields", {})
    if name in models:
        return dataclasses.MISSING if models[name].is_required() else _shown(models[name].get_default())
    if dataclasses.is_dataclass(cls):
        found = next((f for f in dataclasses.fields(cls) if f.name == name), None)
        made = found is not None and found.default_factory is not dataclasses.MISSING
        return "..." if made else _shown(found.default if found else dataclasses.MISSING)
    return _shown(vars(cls).get(name, dataclasses.MISSING))


def _shown(value: Any) -> Any:
    """Defaults whose text is the same in every Python; others as dots."""
    if value is dataclasses.MISSING or inspect.isdatadescriptor(value):
        return dataclasses.MISSING
    return repr(value) if isinstance(value, str | int | float | tuple | None) else "..."


def method_text(name: str, value: Any) -> str:
    """`- name(...)`, how it is declared, and its docstring; empty for what is no method."""
    function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    if not inspect.isfunction(function):
        return ""
    words = [type(value).__name__] if not inspect.isfunction(value) else []
    words += ["abstract"] if getattr(function, "__isabstractmethod__", False) else []
    shown = name if isinstance(value, property) else f"{name}{signature(function)}"
    doc = inspect.cleandoc(function.__doc__ or "").replace("\n", "\n  ")
    how = f" ({', '.join(words)})" if words else ""
    return f"- `{shown}`{how}" + (f"  \n  {doc}" if doc else "")


def document() -> str:
    """The whole file."""
    return "\n\n".join([HEAD.strip(), *map(module_text, modules())]) + "\n"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
