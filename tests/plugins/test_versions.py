"""Both ways: today's and later cores with plug-ins built for older and newer plug-in APIs."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fd_core.api import manifest
from fd_core.api.manifest import Version
from fd_core.api.verdict import ReasonCode
from fd_core.api.version import OLDEST_PLUGIN_API, PLUGIN_API
from fd_core.cli import new_plugin
from fd_core.host.find import Found
from fd_core.host.plugins import Plugin, PluginHost
from fd_core.host.probe_cache import ProbeCache
from fd_core.host.session import freeze_ops
from fd_core.ops.catalogue import find
from tests.plugins import broken
from tests.plugins.broken import Fake
from tests.plugins.conftest import Load

TOOL: dict[str, Any] = runpy.run_path(
    str(Path(__file__).parents[2] / "tools" / "docs" / "write_versions.py"), run_name="write_versions"
)
NAME = "elder"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a plug-in's package can be imported from; it is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path / f"fd-{NAME}" / "src"))
    yield tmp_path
    sys.modules.pop(f"fd_{NAME}", None)


def host_with(folder: Path, wants: tuple[Version, Version]) -> PluginHost:
    """The plug-in of `fd new-plugin`, with this range in its manifest, in a host of its own."""
    written = new_plugin.write(NAME, folder)
    file = next(one for one in written if one.name == manifest.FILE)
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "api": {"min": wants[0], "max": wants[1]}}))
    return PluginHost([Found(NAME, f"fd_{NAME}", f"fd-{NAME}", "0.1.0")], ProbeCache(None), True, 20)


def serves(host: PluginHost) -> bool:
    """Whether its device opens and an op runs there."""
    platform = host.platform_class(NAME)()
    ops = freeze_ops(host, platform.open(0), NAME, "allow")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    out = platform.empty(platform.from_host(x).spec)
    ops.silu(platform.from_host(x), out)
    want = np.empty_like(x)
    find("silu").oracle(x, want)
    return bool(np.array_equal(platform.to_host(out), want))


@pytest.mark.parametrize("core", TOOL["CORES"], ids=str)
@pytest.mark.parametrize("wants", TOOL["PLUGINS"], ids=str)
def test_every_cell_of_the_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, core: Any, wants: tuple[Version, Version]
) -> None:
    """A plug-in that loads serves an op; one that is refused is not imported."""
    monkeypatch.setattr(manifest, "PLUGIN_API", core.api)
    monkeypatch.setattr(manifest, "OLDEST_PLUGIN_API", core.oldest)
    host = host_with(folder, wants)
    plugin, told = host.plugins[0], TOOL["outcome"](core, wants)
    assert [r.code for r in plugin.verdict.reasons] == [r.code for r in told.reasons]
    assert plugin.loaded is told.ok
    assert (f"fd_{NAME}" in sys.modules) is told.ok
    if told.ok:
        assert serves(host)
    else:
        (reason,) = plugin.verdict.reasons
        assert f"fd-{NAME} 0.1.0" in reason.subject
        assert "upgrade" in reason.fix


def test_the_table_covers_both_ways() -> None:
    """Oldest plug-in in the newest core, newest plug-in in the oldest core; loaded and refused."""
    cores, plugins, outcome = TOOL["CORES"], TOOL["PLUGINS"], TOOL["outcome"]
    assert cores[0].api == PLUGIN_API
    assert plugins[0] == (OLDEST_PLUGIN_API, OLDEST_PLUGIN_API)
    codes = {reason.code for core in cores for wants in plugins for reason in outcome(core, wants).reasons}
    assert codes == {ReasonCode.API_TOO_OLD, ReasonCode.API_TOO_NEW}
    assert outcome(cores[2], plugins[0]).ok  # time of grace after a breaking change
    assert outcome(cores[3], plugins[0]).reasons[0].code is ReasonCode.API_TOO_OLD
    assert outcome(cores[0], plugins[-1]).reasons[0].code is ReasonCode.API_TOO_NEW


def test_the_published_table_is_this_one() -> None:
    """After a new PLUGIN_API: python tools/docs/write_versions.py."""
    assert TOOL["document"]() == TOOL["TARGET"].read_text(encoding="utf-8")


LATER = """

@hookimpl({options})
def fd_of_a_later_core(device):
    return []
"""


@pytest.mark.parametrize(("options", "loads"), [("optionalhook=True", True), ("", False)])
def test_a_hook_that_this_core_does_not_know(load: Load, options: str, loads: bool) -> None:
    """Of a newer plug-in: marked optional it is left out, unmarked it counts as a misspelt one."""
    plugin: Plugin = load(Fake("newer", broken.GOOD + LATER.format(options=options)))
    assert plugin.loaded is loads
    if not loads:
        assert plugin.verdict.reasons[0].code is ReasonCode.REGISTER


def test_a_hook_from_before_an_argument_was_added(load: Load) -> None:
    """Of an older plug-in: it takes fewer arguments than the core passes now."""
    plugin = load(Fake("older", broken.GOOD + "\n\n@hookimpl\ndef fd_doctor():\n    return []\n"))
    assert plugin.loaded
