"""A session: one opened device with its frozen ops, attention backends and quantisation methods."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fd_core import environ
from fd_core.api.verdict import ReasonCode, Verdict
from fd_core.host.errors import PlatformError
from fd_core.host.facts import open_platform
from fd_core.host.freeze import freeze
from fd_core.host.ledger import Ledger
from fd_core.host.plugins import PluginHost, plugin_host
from fd_core.host.reference import ReferencePlatform
from fd_core.host.select import Choice, choose
from fd_core.ops.catalogue import catalogue

if TYPE_CHECKING:
    from fd_core.api.attention import AttentionBackend
    from fd_core.api.device import DeviceInfo
    from fd_core.api.platform import Platform
    from fd_core.api.quant import QuantMethod
    from fd_core.host.dispatch import Dispatch

_log = logging.getLogger("fd")


@dataclass(frozen=True)
class Session:
    """What a model is built on. `attention_backends` best first; `quant_methods` by name."""

    platform: Platform
    device: DeviceInfo
    ops: Dispatch
    attention_backends: list[type[AttentionBackend]]
    quant_methods: dict[str, type[QuantMethod]]
    ledger: Ledger


def open_session(platform: str | None = None, index: int = 0, fallback: str | None = None) -> Session:
    """Open device `index` of `platform` (None: `FD_PLATFORM`, else the best that is available).

    `fallback`: error, warn or allow; None: `FD_FALLBACK`, else `error` where a platform was named.

    Raises PlatformError with the report of every plug-in when the platform cannot be opened.
    """
    host = plugin_host()
    choice = choose(host.facts(), platform or environ.value("FD_PLATFORM"))
    announce(choice)
    opened = host.platform_class(choice.name)()
    device = open_platform(opened, index, host.facts())
    policy = fallback or environ.value("FD_FALLBACK") or default_policy(choice)
    ops = freeze_ops(host, device, choice.name, policy)
    backends, methods = host.attention_backends(device), host.quant_methods(device)
    return Session(opened, device, ops, backends, methods, Ledger(ops, host.origins()))


def freeze_ops(host: PluginHost, device: DeviceInfo, platform: str, policy: str) -> Dispatch:
    """Every op of the catalogue on one device; the reference platform uses the oracles alone."""
    reference = platform == ReferencePlatform.name
    kernels = [] if reference else host.kernels(device)
    prefer = preferences(environ.value("FD_KERNELS"))
    return freeze(catalogue(), kernels, device, policy=policy, oracle_is_native=reference, prefer=prefer)


def default_policy(choice: Choice) -> str:
    """Who asks for a device by name does not want something else to do its work."""
    return "error" if choice.named and choice.name != ReferencePlatform.name else "warn"


def preferences(rows: Iterable[str]) -> dict[str, str]:
    """FD_KERNELS: `op=provider` rows as a mapping; PlatformError for an op that does not exist."""
    pairs = {op.strip(): provider.strip() for op, _, provider in (row.partition("=") for row in rows)}
    unknown = sorted(set(pairs) - set(catalogue()))
    if unknown or not all(pairs.values()):
        have = ", ".join(unknown) or ",".join(rows)
        verdict = Verdict.no(
            ReasonCode.POLICY, "FD_KERNELS", "op=provider with ops of the catalogue", have, "correct it"
        )
        raise PlatformError(str(verdict), verdict)
    return pairs


def announce(choice: Choice) -> None:
    """Say why better platforms are not used, and that the reference platform is slow."""
    for fact in choice.rejected:
        if not all(reason.code is ReasonCode.DISABLED for reason in fact.verdict.reasons):
            _log.warning("platform %s (%s) is not used: %s", fact.name, fact.provider, fact.verdict)
    if choice.name == ReferencePlatform.name and not choice.named:
        _log.warning(
            "running on NumPy oracles, slowly: no plug-in's device is in use (fd doctor says why); "
            "for this machine's processor: pip install fd-cpu"
        )


_lock = threading.Lock()
#: The process's session; None until it is first asked for. Ops compare theirs with it in every call.
current: Session | None = None


def current_session() -> Session:
    """The process's session, opened on first call."""
    global current
    if current is None:
        with _lock:
            current = current or open_session()
    return current
