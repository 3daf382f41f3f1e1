"""FastDeploy's operators and platform object over ours: change one import and run.

    from fd_core.compat.fastdeploy import append_attention, get_padding_offset, current_platform

Operators take FastDeploy's arguments in its order, in every published form, on tensors of any library, and
return tensors of that library; operators that change a tensor return it too. Names without an op raise
UnsupportedOpError when called (`unsupported()` lists them with reasons). Every operator of the catalogue is
reachable as well. What differs on purpose: docs/paddle.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fd_core.compat.fastdeploy.platform import Platform

    current_platform: Platform

_FORMS = ("attention", "moe", "norm", "padding", "sampling")
_PLATFORM = ("Platform", "_Backend", "get_attention_backend", "get_sm_version")


def _registered() -> frozenset[str]:
    import importlib

    from fd_core.compat.fastdeploy.overload import registered

    for module in _FORMS:
        importlib.import_module(f"{__name__}.{module}")
    return registered()


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if name == "current_platform":
        from fd_core.compat.fastdeploy.platform import current_platform

        return current_platform()
    if name == "GraphOptimizationConfig":
        from fd_core.compat.fastdeploy.graph import GraphOptimizationConfig

        return GraphOptimizationConfig
    if name in _PLATFORM:
        from fd_core.compat.fastdeploy import platform

        return getattr(platform, name)
    return globals().setdefault(name, _operator(name))


def _operator(name: str) -> Callable[..., Any]:
    from fd_core.compat.fastdeploy.absent import REASONS, absent
    from fd_core.compat.fastdeploy.overload import form, operator
    from fd_core.ops.call import public_op
    from fd_core.ops.catalogue import catalogue

    if name not in _registered() and name in catalogue():
        form(name)(public_op(name))
    if name in _registered():
        return operator(name)
    if name in REASONS:
        return absent(name)
    raise AttributeError(f"fd_core.compat.fastdeploy: no operator is called {name!r}{_nearest(name)}")


def _nearest(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, __dir__())
    return f"; nearest: {', '.join(near)}" if near else ""


def unsupported() -> dict[str, str]:
    """FastDeploy's operators that raise UnsupportedOpError, with the reason of each."""
    from fd_core.compat.fastdeploy.absent import REASONS
    from fd_core.ops.catalogue import catalogue

    return {name: reason for name, reason in REASONS.items() if name not in {*catalogue(), *_registered()}}


def __dir__() -> list[str]:
    from fd_core.compat.fastdeploy.absent import REASONS
    from fd_core.ops.catalogue import catalogue

    others = (*_PLATFORM, "GraphOptimizationConfig", "current_platform", "unsupported")
    return sorted({*_registered(), *catalogue(), *REASONS, *others})
