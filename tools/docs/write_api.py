"""Writes tests/plugins/api_v1.json: every public name of fd_core.api with its signature.

python tools/docs/write_api.py                  # refuses a change that PLUGIN_API does not show
python tools/docs/write_api.py --unreleased     # no release carries this PLUGIN_API yet
"""

from __future__ import annotations

import argparse
import enum
import importlib
import inspect
import json
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import fd_core.api
from fd_core.api.version import PLUGIN_API

TARGET = Path(__file__).parents[2] / "tests" / "plugins" / "api_v1.json"
Names = dict[str, str]


def dump() -> dict[str, Any]:
    """PLUGIN_API and every public name, dotted, with its signature as text."""
    names: Names = {}
    for found in pkgutil.iter_modules(fd_core.api.__path__):
        names |= module_names(importlib.import_module(f"fd_core.api.{found.name}"))
    return {"plugin_api": list(PLUGIN_API), "names": dict(sorted(names.items()))}


def module_names(module: ModuleType) -> Names:
    short = module.__name__.removeprefix("fd_core.api.")
    names: Names = {}
    for name, value in vars(module).items():
        if (
            name.startswith("_")
            or name == "TYPE_CHECKING"
            or getattr(value, "__module__", module.__name__) != module.__name__
        ):
            continue
        if inspect.isclass(value):
            names |= class_names(f"{short}.{name}", value)
        elif inspect.isfunction(value):
            names[f"{short}.{name}"] = f"function {signature(value)}"
        elif isinstance(value, str | int | tuple) and name.isupper():
            names[f"{short}.{name}"] = f"constant {type(value).__name__}"
    return names


def class_names(path: str, cls: type) -> Names:
    """The class itself, its members of an enumeration or its fields, and its own public methods."""
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    names = {path: f"class({bases})"}
    if issubclass(cls, enum.Enum):
        return names | {f"{path}.{m.name}": f"member {m.value!r}" for m in cls}
    for field, kind in vars(cls).get("__annotations__", {}).items():
        if not field.startswith("_"):
            names[f"{path}.{field}"] = f"field {kind}"
    for name, value in vars(cls).items():
        text = member(value)
        if text and not name.startswith("_"):
            names[f"{path}.{name}"] = text
    return names


def member(value: Any) -> str:
    """A method's or property's signature; empty for anything else."""
    kind, function = type(value).__name__, getattr(value, "__func__", value)
    if isinstance(value, property):
        kind, function = "property", value.fget
    if not inspect.isfunction(function):
        return ""
    abstract = "abstract " if getattr(function, "__isabstractmethod__", False) else ""
    return f"{abstract}{kind} {signature(function)}"


def signature(function: Any) -> str:
    return str(inspect.signature(function))


def changes(old: Names, new: Names) -> tuple[list[str], list[str]]:
    """(names that only a new major version may bring, names that a new minor version may bring).

    A new abstract method breaks the plug-ins that lack it.
    """
    gone = [f"- {name}" for name in old if name not in new]
    gone += [
        f"~ {name}: {old[name]} -> {new[name]}" for name in old if new.get(name, old[name]) != old[name]
    ]
    added = [name for name in new if name not in old]
    gone += [f"+ {name} (abstract)" for name in added if new[name].startswith("abstract ")]
    return gone, [f"+ {name}" for name in added if not new[name].startswith("abstract ")]


def problem(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What PLUGIN_API has to become; empty if it says enough."""
    breaking, added = changes(old["names"], new["names"])
    (major, minor), now = old["plugin_api"], tuple(new["plugin_api"])
    least = (major + 1, 0) if breaking else (major, minor + 1) if added else (major, minor)
    if now >= least:
        return ""
    text = "\n".join([*breaking, *added])
    return f"fd_core.api changed: want PLUGIN_API of at least {least}, have {now}\n{text}\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--unreleased", action="store_true")
    args = parser.parse_args()
    new = dump()
    wrong = problem(json.loads(TARGET.read_text(encoding="utf-8")), new) if TARGET.exists() else ""
    if wrong and not args.unreleased:
        sys.stderr.write(wrong)
        return 1
    TARGET.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
