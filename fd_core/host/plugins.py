"""The plug-ins of this process: found, checked, probed and loaded once, each step's verdict kept."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from fd_core import __version__, environ
from fd_core.api.kernel import Kernel
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.host import probe as probing
from fd_core.host.check import check, locate
from fd_core.host.errors import PlatformError
from fd_core.host.find import Found, filtered, installed, unknown_names
from fd_core.host.ledger import Origin
from fd_core.host.presence import check_presence
from fd_core.host.probe import Probed, ProbeResult
from fd_core.host.probe_cache import ProbeCache, cache_folder, key
from fd_core.host.reference import ReferencePlatform
from fd_core.host.register import ask, check_platforms, implements, load, new_manager, unknown_names_of
from fd_core.host.select import PlatformFact
from fd_core.host.stamp import check_files, same_stamp

if TYPE_CHECKING:
    from types import ModuleType

    from fd_core.api.attention import AttentionBackend
    from fd_core.api.device import DeviceInfo
    from fd_core.api.manifest import Manifest
    from fd_core.api.platform import Platform
    from fd_core.api.quant import QuantMethod

_log = logging.getLogger("fd.plugins")
Kind = type | tuple[type, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One step: find, manifest, files, probe, import, binary, or the name of a hook."""

    name: str
    verdict: Verdict
    seconds: float = 0.0


@dataclass
class Plugin:
    """One plug-in on its way through the load sequence.

    `described`: no device of it can be used, but its hooks may be asked, about devices that are not there.
    `spared`: its probe was not started, since this machine has nothing that its devices come with.
    `deprecations`: what to change in it before a later plug-in API. `remarks`: what it names and this core
    does not know, and so leaves out.
    """

    found: Found
    steps: list[Step] = field(default_factory=list)
    manifest: Manifest | None = None
    probe: ProbeResult = field(default_factory=ProbeResult)
    module: ModuleType | None = None
    described: bool = False
    spared: bool = False
    deprecations: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        return Verdict.all(step.verdict for step in self.steps)

    @property
    def loaded(self) -> bool:
        return self.module is not None and self.verdict.ok

    def record(self, name: str, verdict: Verdict, started: float | None = None) -> bool:
        """Keep a step's outcome; a hook that is asked again replaces its last one."""
        seconds = 0.0 if started is None else time.perf_counter() - started
        self.steps = [step for step in self.steps if step.name != name]
        self.steps.append(Step(name, verdict, seconds))
        return verdict.ok

    def remark(self, texts: Iterable[str]) -> None:
        """Keep and log each text once."""
        for text in texts:
            if text not in self.remarks:
                self.remarks.append(text)
                _log.warning("%s: %s", self.found, text)

    def facts(self) -> list[PlatformFact]:
        """Its platforms; when it could not say, those of its manifest, else one of its own name."""
        provider = f"{self.found.distribution} {self.found.version}"
        if self.probe.platforms:
            return [_fact(p, provider, self.verdict) for p in self.probe.platforms]
        if self.verdict.ok:
            return []
        names = (self.manifest and self.manifest.platforms) or (self.found.name,)
        return [PlatformFact(name, provider, None, verdict=self.verdict) for name in names]


def _fact(p: Probed, provider: str, verdict: Verdict) -> PlatformFact:
    reasons = dict.fromkeys((*verdict.reasons, *p.verdict.reasons))
    return PlatformFact(p.name, provider, p.priority, len(p.devices), Verdict(tuple(reasons)))


class PluginHost:
    """All plug-ins with their verdicts, and what the usable ones offer."""

    def __init__(self, found: Iterable[Found], cache: ProbeCache, inline: bool, timeout: float) -> None:
        self._manager = new_manager()
        self._cache = cache
        self._inline = inline
        self._timeout = timeout
        self._platforms: dict[str, type[Platform]] = {ReferencePlatform.name: ReferencePlatform}
        self._origins = {"oracle": Origin("fd-core", __version__, "numpy")}
        self.plugins = [Plugin(one, [Step("find", one.verdict)]) for one in found]
        for plugin in self.plugins:
            self._read_manifest(plugin)
        for plugin in self.plugins:
            if plugin.verdict.ok and self._check_files(plugin) and self._probe(plugin):
                self._load(plugin)

    # -- steps 2 to 5 --------------------------------------------------------------------------------

    def _read_manifest(self, plugin: Plugin) -> None:
        """Blocked plug-ins too: it imports nothing, and their environment variables are known."""
        started = time.perf_counter()
        plugin.manifest, verdict = check(plugin.found)
        plugin.record("manifest", verdict, started)
        if plugin.manifest is not None:
            owner = plugin.found.distribution
            rows = (row.model_dump() for row in plugin.manifest.environment)
            environ.registry.declare(environ.Variable(**row, owner=owner) for row in rows)

    def _check_files(self, plugin: Plugin) -> bool:
        """Before anything loads them, and so before the probe does."""
        manifest, folder = plugin.manifest, locate(plugin.found)
        if manifest is None or not manifest.binaries or not manifest.stamp or isinstance(folder, Verdict):
            return True
        started = time.perf_counter()
        verdict = check_files(plugin.found, folder, manifest.binaries, manifest.stamp)
        return plugin.record("files", verdict, started)

    def _load(self, plugin: Plugin) -> bool:
        return self._import(plugin) and self._compare_stamp(plugin)

    def _probe(self, plugin: Plugin) -> bool:
        started = time.perf_counter()
        plugin.probe = self._probe_result(plugin)
        verdict = plugin.probe.verdict
        if plugin.probe.platforms and not plugin.probe.usable:
            verdict &= Verdict.all(p.verdict for p in plugin.probe.platforms)
        return plugin.record("probe", verdict, started)

    def _probe_result(self, plugin: Plugin) -> ProbeResult:
        folder = locate(plugin.found)
        assert not isinstance(folder, Verdict)  # the manifest was read from it
        if self._inline:
            return probing.probe_here(plugin.found)
        absent = check_presence(plugin.manifest.presence if plugin.manifest else None)
        if not absent.ok:
            plugin.spared = True
            return ProbeResult(verdict=absent)
        names = [row.name for row in plugin.manifest.environment] if plugin.manifest else []
        name = key(plugin.found, folder, names)
        remembered = self._cache.get(name)
        if remembered is not None:
            return remembered
        result = probing.probe_in_subprocess(plugin.found, self._timeout)
        self._cache.put(name, result)
        return result

    def _import(self, plugin: Plugin) -> bool:
        started = time.perf_counter()
        module, verdict, plugin.deprecations = load(self._manager, plugin.found)
        for message in plugin.deprecations:
            _log.warning("%s: %s", plugin.found, message)
        if module is not None:
            classes, refused = ask(self._manager, plugin.found, module, "fd_platforms")
            verdict = refused & check_platforms(plugin.found, classes or [])
            if verdict.ok:
                self._platforms.update({cls.name: cls for cls in classes or []})
        plugin.module = module
        return plugin.record("import", verdict, started)

    def _compare_stamp(self, plugin: Plugin) -> bool:
        wanted = plugin.manifest.stamp if plugin.manifest else {}
        if not wanted or plugin.module is None:
            return plugin.record("binary", YES)
        started = time.perf_counter()
        stamp, verdict = ask(self._manager, plugin.found, plugin.module, "fd_stamp")
        if not implements(self._manager, plugin.module, "fd_stamp"):
            verdict = _bad_binary(plugin.found, "a hook fd_stamp", "no fd_stamp")
        elif not verdict.ok:
            verdict = _bad_binary(plugin.found, "to load", verdict.reasons[0].have)
        elif stamp is not None:
            verdict = same_stamp(plugin.found, "loaded binary", wanted, stamp)
        return plugin.record("binary", verdict, started)

    # -- step 6 --------------------------------------------------------------------------------------

    def _collect(self, hook: str, kind: Kind, **facts: Any) -> Iterator[tuple[Plugin, Any]]:
        """Every item that the loaded plug-ins' hooks return, each as `kind` says."""
        for plugin in self.plugins:
            if plugin.module is None or not (plugin.loaded or plugin.described):
                continue
            items, verdict = ask(self._manager, plugin.found, plugin.module, hook, **facts)
            items = [] if items is None else items
            verdict &= _check_items(plugin.found, hook, kind, items)
            if plugin.record(hook, verdict):
                yield from ((plugin, item) for item in items)
            else:
                _log.warning("%s", verdict)

    def add_built_in(self, name: str, module: str) -> None:
        """A plug-in that is part of this package: no manifest, no probe in a process of its own."""
        plugin = Plugin(Found(name, module, "fd-core", __version__), [Step("find", YES)])
        self.plugins.append(plugin)
        plugin.probe = probing.probe_here(plugin.found)
        self._import(plugin)

    def simulated_devices(self) -> list[tuple[str, DeviceInfo]]:
        """(platform, facts) of every architecture that a plug-in describes, on hand or not."""
        for plugin in self.plugins:
            told = plugin.loaded or plugin.described
            if plugin.spared:
                plugin.probe, plugin.spared = self.probe_apart(plugin), False
            if not told and plugin.probe.platforms:  # it survived being imported by its probe
                plugin.module, verdict, plugin.deprecations = load(self._manager, plugin.found)
                plugin.described = verdict.ok
        from fd_core.api.device import DeviceInfo

        return [row for _, row in self._collect("fd_simulated_devices", (str, DeviceInfo))]

    def kernels(self, device: DeviceInfo) -> list[Kernel]:
        found = list(self._collect("fd_kernels", Kernel, device=device))
        for plugin, kernel in found:
            origin = Origin(plugin.found.distribution, plugin.found.version, device.arch)
            self._origins[kernel.provider] = origin
            plugin.remark(f"kernels of {kernel.op}: {text}" for text in unknown_names_of(kernel))
        return [kernel for _, kernel in found]

    def attention_backends(self, device: DeviceInfo) -> list[type[AttentionBackend]]:
        """Best first; core's own, built on ops, has priority 0."""
        from fd_core.api.attention import AttentionBackend

        own = _optional("fd_core.layers.attention_backend", "PagedAttention")
        found = [cls for _, cls in self._collect("fd_attention_backends", AttentionBackend, device=device)]
        return sorted([*own, *found], key=lambda cls: (-cls.priority, cls.name))

    def quant_methods(self, device: DeviceInfo) -> dict[str, type[QuantMethod]]:
        """By name; where two share one, the higher priority wins."""
        from fd_core.api.quant import QuantMethod

        own = _optional("fd_core.quantization.unquantized", "Unquantized")
        own += _optional("fd_core.quantization.fp8", "Float8Linear")
        found = [cls for _, cls in self._collect("fd_quant_methods", QuantMethod, device=device)]
        return {cls.name: cls for cls in sorted([*own, *found], key=lambda cls: cls.priority)}

    def models(self) -> dict[str, str]:
        """Architectures that plug-ins add: name in config.json -> "module:class"."""
        return {name: target for _, (name, target) in self._items("fd_models")}

    def _items(self, hook: str) -> Iterator[tuple[Plugin, tuple[str, Any]]]:
        """What hooks that return mappings offer."""
        for plugin in self.plugins:
            if plugin.loaded and plugin.module is not None:
                found, verdict = ask(self._manager, plugin.found, plugin.module, hook)
                plugin.record(hook, verdict)
                yield from ((plugin, item) for item in (found or {}).items())

    def checks(self, device: DeviceInfo) -> list[tuple[Plugin, str, Verdict]]:
        """The plug-ins' own checks of their devices, for `fd doctor`."""
        return [(p, *row) for p, row in self._collect("fd_doctor", (str, Verdict), device=device)]

    def extensions(self, hook: str) -> dict[str, Any]:
        """The merged answers of a software hook: fd_models, fd_reasoning_parsers, fd_tool_parsers."""
        merged: dict[str, Any] = {}
        for plugin in self.plugins:
            if plugin.loaded and plugin.module is not None:
                answer, verdict = ask(self._manager, plugin.found, plugin.module, hook)
                plugin.record(hook, verdict)
                merged.update(answer or {})
        return merged

    def probe_apart(self, plugin: Plugin) -> ProbeResult:
        """A fresh probe in a process of its own, whatever the environment says of this plug-in."""
        return probing.probe_in_subprocess(plugin.found, self._timeout)

    # -- platforms -----------------------------------------------------------------------------------

    def facts(self) -> list[PlatformFact]:
        """Every platform on offer, core's own included."""
        own = PlatformFact(ReferencePlatform.name, "fd-core", ReferencePlatform.priority, 1)
        return [own, *(fact for plugin in self.plugins for fact in plugin.facts())]

    def platform_class(self, name: str) -> type[Platform]:
        return self._platforms[name]

    def version_of(self, provider: str) -> str:
        """Release of the distribution behind a kernel provider; "" if it is not known."""
        return self._origins[provider].version if provider in self._origins else ""

    def origins(self) -> dict[str, Origin]:
        return self._origins


def _check_items(found: Found, hook: str, kind: Kind, items: Any) -> Verdict:
    fix = f"report it to the authors of {found.distribution}"
    if not isinstance(items, list | tuple):
        return Verdict.no(ReasonCode.REGISTER, f"{hook} of {found}", "a list", repr(items), fix)
    want = f"a ({', '.join(k.__name__ for k in kind)})" if isinstance(kind, tuple) else f"a {kind.__name__}"
    return Verdict.all(
        Verdict.no(ReasonCode.REGISTER, f"{hook} of {found}", want, repr(item), fix)
        for item in items
        if not _fits(kind, item)
    )


def _fits(kind: Kind, item: Any) -> bool:
    """An instance or subclass of a type; a tuple of instances of several."""
    if isinstance(kind, tuple):
        return isinstance(item, tuple) and len(item) == len(kind) and all(map(isinstance, item, kind))
    return issubclass(item, kind) if isinstance(item, type) else isinstance(item, kind)


def _bad_binary(found: Found, want: str, have: str) -> Verdict:
    fix = f"pip install --force-reinstall {found.distribution}, or report it to its authors"
    return Verdict.no(ReasonCode.ABI, f"binary of {found}", want, have, fix)


def _optional(module: str, attribute: str) -> list[Any]:
    """Core's own class, when that module is part of this installation."""
    try:
        return [getattr(importlib.import_module(module), attribute)]
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return []


@cache
def plugin_host() -> PluginHost:
    """This process's plug-ins, loaded on first call under the environment's rules."""
    found = installed()
    only, block = environ.value("FD_PLUGINS_ONLY"), environ.value("FD_PLUGINS_BLOCK")
    wrong = unknown_names(found, only, "FD_PLUGINS_ONLY") & unknown_names(found, block, "FD_PLUGINS_BLOCK")
    if not wrong.ok:
        raise PlatformError(f"plug-ins: {wrong}", wrong)
    allowed = filtered(found, only, block, environ.value("FD_SAFE_MODE"))
    inline, timeout = environ.value("FD_PROBE") == "inline", environ.value("FD_PROBE_TIMEOUT")
    host = PluginHost(allowed, ProbeCache(cache_folder()), inline, timeout)
    if environ.value("FD_SIM") or environ.value("FD_SIM_FAULT"):
        host.add_built_in("simulated", "fd_core.testkit.simulated")
    for message in environ.registry.unknown():
        _log.warning("%s", message)
    return host
