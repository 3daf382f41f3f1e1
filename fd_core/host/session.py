"""A session: one opened device with its frozen ops, attention backends and quantisation methods."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fd_core.host.freeze import freeze
from fd_core.host.ledger import Ledger
from fd_core.host.plugins import plugin_host
from fd_core.host.reference import ReferencePlatform
from fd_core.host.select import choose
from fd_core.ops.catalogue import catalogue

if TYPE_CHECKING:
    from fd_core.api.attention import AttentionBackend
    from fd_core.api.device import DeviceInfo
    from fd_core.api.platform import Platform
    from fd_core.api.quant import QuantMethod
    from fd_core.host.dispatch import Dispatch


@dataclass(frozen=True)
class Session:
    """What a model is built on. `attention_backends` best first; `quant_methods` by name."""

    platform: Platform
    device: DeviceInfo
    ops: Dispatch
    attention_backends: list[type[AttentionBackend]]
    quant_methods: dict[str, type[QuantMethod]]
    ledger: Ledger


def open_session(platform: str | None = None, index: int = 0) -> Session:
    """Open device `index` of `platform` (None: `FD_PLATFORM`, else the best that is available).

    Raises PlatformError with the report of every plug-in when the named platform cannot be opened.
    """
    host = plugin_host()
    choice = choose(host.facts(), platform or os.environ.get("FD_PLATFORM"))
    opened = host.platform_class(choice.name)()
    device = opened.open(index)
    native = choice.name == ReferencePlatform.name
    policy = os.environ.get("FD_FALLBACK") or ("error" if choice.named and not native else "warn")
    kernels = [] if native else host.kernels(device)
    ops = freeze(catalogue(), kernels, device, policy=policy, oracle_is_native=native)
    backends, methods = host.attention_backends(device), host.quant_methods(device)
    return Session(opened, device, ops, backends, methods, Ledger(ops, host.origins()))


_lock = threading.Lock()
_current: list[Session] = []


def current_session() -> Session:
    """The process's session, opened on first call."""
    with _lock:
        if not _current:
            _current.append(open_session())
        return _current[0]
