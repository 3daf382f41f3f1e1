from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fd_core.host.plugins import Plugin, PluginHost
from fd_core.host.probe_cache import ProbeCache
from tests.plugins.broken import Fake

Load = Callable[..., Plugin]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Install one fake plug-in and take it through the load sequence."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def run(fake: Fake, *, inline: bool = False, timeout: float = 20) -> Plugin:
        host = PluginHost([fake.install(tmp_path)], ProbeCache(None), inline, timeout)
        return host.plugins[0]

    yield run
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
