"""Hooks a plug-in module may implement. All return data; none changes the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from fd_core.api.attention import AttentionBackend
    from fd_core.api.device import DeviceInfo
    from fd_core.api.kernel import Kernel
    from fd_core.api.platform import Platform
    from fd_core.api.quant import QuantMethod
    from fd_core.api.verdict import Verdict

PROJECT = "fd_core"
GROUP = "fd_core.plugins"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def fd_platforms() -> list[type[Platform]]:
    """Platform classes of this plug-in."""
    return []


@hookspec
def fd_kernels(device: DeviceInfo) -> list[Kernel]:
    """Kernels on offer for `device` (records only; targets are imported when frozen)."""
    return []


@hookspec
def fd_attention_backends(device: DeviceInfo) -> list[type[AttentionBackend]]:
    """Attention backends on offer for `device`."""
    return []


@hookspec
def fd_quant_methods(device: DeviceInfo) -> list[type[QuantMethod]]:
    """Quantisation methods on offer for `device`."""
    return []


@hookspec
def fd_doctor(device: DeviceInfo) -> list[tuple[str, Verdict]]:
    """Vendor checks for `fd doctor`: (what was looked at, verdict)."""
    return []


@hookspec
def fd_simulated_devices() -> list[tuple[str, DeviceInfo]]:
    """The architectures this plug-in has kernels for: (platform name, facts of a typical device) each.

    Asked without any device there, for `fd why --sim` and `fd matrix --sim`.
    """
    return []


@hookspec
def fd_stamp() -> dict[str, Any] | None:
    """Load the binary and return what it exports of its build; compared with the manifest's `stamp`.

    None: nothing to compare (a library that a developer put in its place).
    """
    return None


@hookspec
def fd_models() -> dict[str, str]:
    """Model architectures: name in `config.json` -> "module:class"."""
    return {}


@hookspec
def fd_reasoning_parsers() -> dict[str, Any]:
    """Reasoning parsers by name."""
    return {}


@hookspec
def fd_tool_parsers() -> dict[str, Any]:
    """Tool-call parsers by name."""
    return {}
