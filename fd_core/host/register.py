"""Step 4 of loading: import, register and question one plug-in, so that no failure of it spreads."""

from __future__ import annotations

import difflib
import importlib
import inspect
import traceback
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pluggy

from fd_core.api import hookspecs
from fd_core.api.kernel import Kernel
from fd_core.api.platform import Platform
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.host.find import Found

#: What a plug-in may throw at us; an interrupt by the user passes.
FAILURES = (Exception, SystemExit)


def new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def describe(error: BaseException) -> str:
    """`ValueError: text (file:line)`, the line being the plug-in's innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def load(manager: pluggy.PluginManager, found: Found) -> tuple[ModuleType | None, Verdict, list[str]]:
    """Import the module and register its hooks; a misspelt hook or a wrong argument is refused.

    Third: what a hook specification says of hooks (`warn_on_impl`) that this plug-in still implements.
    """
    try:
        module = importlib.import_module(found.module)
    except FAILURES as error:
        fix = f"reinstall or upgrade {found.distribution}, or set FD_PLUGINS_BLOCK={found.name}"
        return None, Verdict.no(ReasonCode.IMPORT, str(found), "to import", describe(error), fix), []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            manager.register(module, found.name)
        manager.check_pending()
    except FAILURES as error:
        manager.unregister(name=found.name)
        have = f"{type(error).__name__}: {error}"
        verdict = Verdict.no(ReasonCode.REGISTER, str(found), "hooks of fd-core", have, _hook_fix(error))
        return None, verdict, []
    return module, YES, [str(one.message) for one in caught if issubclass(one.category, DeprecationWarning)]


def _hook_fix(error: BaseException) -> str:
    known = [name for name in vars(hookspecs) if name.startswith("fd_")]
    words = [word.strip("'\".,()") for word in str(error).split()]
    wrong = next((w for w in words if w.startswith("fd_") and w not in known), "")
    near = difflib.get_close_matches(wrong, known, 1)
    return f"rename {wrong} to {near[0]}" if near else f"hooks are {', '.join(known)}"


def implements(manager: pluggy.PluginManager, module: ModuleType, hook: str) -> bool:
    return any(impl.plugin is module for impl in getattr(manager.hook, hook).get_hookimpls())


def ask(
    manager: pluggy.PluginManager, found: Found, module: ModuleType, hook: str, **facts: Any
) -> tuple[Any, Verdict]:
    """What this one plug-in's hook returns; None when it has none, or with the reason why it failed."""
    for impl in getattr(manager.hook, hook).get_hookimpls():
        if impl.plugin is module:
            try:
                return impl.function(*(facts[name] for name in impl.argnames)), YES
            except FAILURES as error:
                fix = f"report it to the authors of {found.distribution}"
                subject = f"{hook} of {found}"
                return None, Verdict.no(ReasonCode.REGISTER, subject, "data", describe(error), fix)
    return None, YES


def unknown_names_of(kernel: Kernel) -> Iterator[str]:
    """What a record names and the catalogue does not have: a slip, or an op of a later fd-core."""
    from fd_core.ops.catalogue import catalogue

    if kernel.op not in catalogue():
        near = difflib.get_close_matches(kernel.op, catalogue(), 1)
        yield "this fd-core has no such op" + (f"; did you mean {near[0]}?" if near else "")
        return
    known = [param.name for param in catalogue()[kernel.op].spec.params]
    unknown = sorted(set(kernel.requires.dtypes) - set(known))
    if unknown:
        yield f"dtypes of {', '.join(unknown)}: the op's parameters are {', '.join(known)}"


def check_platforms(found: Found, classes: Any) -> Verdict:
    """`fd_platforms` must return complete Platform classes."""
    if not isinstance(classes, list | tuple):
        return _wrong_platform(found, "a list of Platform classes", repr(classes))
    return Verdict.all(_check_platform(found, cls) for cls in classes)


def _check_platform(found: Found, cls: Any) -> Verdict:
    if not (inspect.isclass(cls) and issubclass(cls, Platform)):
        return _wrong_platform(found, "a Platform class", repr(cls))
    missing = sorted(cls.__abstractmethods__)
    if missing:
        return _wrong_platform(found, "every abstract method", f"{cls.__name__} without {missing}")
    unnamed = [name for name in ("name", "device_type") if not isinstance(getattr(cls, name, None), str)]
    if unnamed:
        return _wrong_platform(found, "class attributes name and device_type", f"no {unnamed}")
    return YES


def _wrong_platform(found: Found, want: str, have: str) -> Verdict:
    fix = "see fd_core.api.platform.Platform"
    return Verdict.no(ReasonCode.REGISTER, f"fd_platforms of {found}", want, have, fix)
