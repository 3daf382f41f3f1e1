"""The plug-ins of this process: found, checked, probed and loaded once, each step's verdict kept."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import pluggy

from fd_core.api import hookspecs
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.host.find import Found, filtered, installed
from fd_core.host.ledger import Origin
from fd_core.host.reference import ReferencePlatform
from fd_core.host.select import PlatformFact

if TYPE_CHECKING:
    from types import ModuleType

    from fd_core.api.attention import AttentionBackend
    from fd_core.api.device import DeviceInfo
    from fd_core.api.kernel import Kernel
    from fd_core.api.platform import Platform
    from fd_core.api.quant import QuantMethod


@dataclass
class Plugin:
    """One plug-in on its way through the load sequence. `steps`: (step, verdict) in order."""

    found: Found
    steps: list[tuple[str, Verdict]] = field(default_factory=list)
    module: ModuleType | None = None

    @property
    def ok(self) -> bool:
        return self.module is not None and self.verdict.ok

    @property
    def verdict(self) -> Verdict:
        return Verdict.all(verdict for _, verdict in self.steps)

    def step(self, name: str, verdict: Verdict) -> bool:
        self.steps.append((name, verdict))
        return verdict.ok


class PluginHost:
    """All plug-ins with their verdicts, and what the usable ones offer."""

    def __init__(self, found: Iterable[Found]) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.plugins = [Plugin(one, [("find", one.verdict)]) for one in found]
        self._origins: dict[str, Origin] = {}
        for plugin in self.plugins:
            if plugin.verdict.ok:
                self._load(plugin)

    def _load(self, plugin: Plugin) -> None:
        try:
            module = importlib.import_module(plugin.found.module)
            self._manager.register(module, plugin.found.name)
            self._manager.check_pending()
        except Exception as error:
            have = f"{type(error).__name__}: {error}"
            plugin.step("import", Verdict.no(ReasonCode.IMPORT, str(plugin.found), "to import", have))
            self._manager.unregister(name=plugin.found.name)
            return
        plugin.module = module
        plugin.step("import", YES)

    def _ask(self, plugin: Plugin, hook: str, **facts: Any) -> Any:
        """What one plug-in's hook returns, [] when it has none."""
        others = [p.module for p in self.plugins if p.ok and p is not plugin]
        answers = self._manager.subset_hook_caller(hook, others)(**facts)
        return answers[0] if answers else []

    def _collect(self, hook: str, **facts: Any) -> list[Any]:
        return [item for p in self.plugins if p.ok for item in self._ask(p, hook, **facts)]

    def platforms(self) -> dict[str, type[Platform]]:
        found = {cls.name: cls for cls in self._collect("fd_platforms")}
        return {ReferencePlatform.name: ReferencePlatform, **found}

    def platform_class(self, name: str) -> type[Platform]:
        return self.platforms()[name]

    def facts(self) -> list[PlatformFact]:
        return [_fact(cls) for cls in self.platforms().values()]

    def kernels(self, device: DeviceInfo) -> list[Kernel]:
        return self._collect("fd_kernels", device=device)

    def attention_backends(self, device: DeviceInfo) -> list[type[AttentionBackend]]:
        """Best first; core's own, built on ops, is last."""
        own = _optional("fd_core.layers.attention_backend", "PagedAttention")
        found = [*self._collect("fd_attention_backends", device=device), *own]
        return sorted(found, key=lambda cls: (-cls.priority, cls.name))

    def quant_methods(self, device: DeviceInfo) -> dict[str, type[QuantMethod]]:
        """By name; where two share one, the higher priority wins."""
        own = _optional("fd_core.quantization.unquantized", "Unquantized")
        found = [*own, *self._collect("fd_quant_methods", device=device)]
        return {cls.name: cls for cls in sorted(found, key=lambda cls: cls.priority)}

    def origins(self) -> dict[str, Origin]:
        return self._origins


def _fact(cls: type[Platform]) -> PlatformFact:
    report = cls.probe()
    return PlatformFact(cls.name, cls.__module__, cls.priority, len(report.devices), report.verdict)


def _optional(module: str, attribute: str) -> list[Any]:
    try:
        return [getattr(importlib.import_module(module), attribute)]
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return []


@cache
def plugin_host() -> PluginHost:
    """This process's plug-ins."""
    return PluginHost(filtered(installed()))
