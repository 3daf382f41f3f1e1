"""What plug-ins are promised, beyond the faults of test_load_sequence: see docs/plugins.md."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import shlex
from pathlib import Path

import pytest

from fd_core.api.attention import AttentionBackend
from fd_core.api.hookspecs import fd_platforms
from fd_core.api.platform import Platform
from fd_core.api.quant import QuantMethod
from fd_core.api.verdict import ReasonCode
from tests.plugins import broken
from tests.plugins.broken import Fake
from tests.plugins.conftest import Load
from tests.plugins.test_load_sequence import only_reason, python

CORE = Path(__file__).parents[2] / "fd_core"
#: Called once a model runs on several devices.
NOT_CALLED_YET = {"communicator"}
LATE = broken.GOOD.replace("return ProbeReport((", "__import__('time').sleep(1.2); return ProbeReport((")
NO_DRIVER = broken.GOOD.replace(
    "return ProbeReport((cls().open(0),))",
    "from fd_core.api.verdict import ReasonCode, Verdict; "
    "why = Verdict.no(ReasonCode.DRIVER, 'driver', '535 or newer', '450', 'upgrade the driver'); "
    "return ProbeReport(verdict=why)",
)


class TestProbe:
    def test_late_within_the_limit(self, load: Load) -> None:
        plugin = load(Fake("late", LATE), timeout=20)
        assert plugin.verdict.ok
        assert next(step for step in plugin.steps if step.name == "probe").seconds > 1.2

    def test_late_beyond_the_limit(self, load: Load) -> None:
        reason = only_reason(load(Fake("later", LATE), timeout=0.8))
        assert reason.code is ReasonCode.PROBE_TIMEOUT
        assert "within 0.8 s" in reason.want

    def test_missing_driver_in_the_plugins_own_words(self, load: Load) -> None:
        plugin = load(Fake("old", NO_DRIVER))
        assert not plugin.loaded
        reason = plugin.facts()[0].verdict.reasons[0]
        assert (reason.code, reason.want, reason.have) == (ReasonCode.DRIVER, "535 or newer", "450")
        assert reason.fix == "upgrade the driver"


@pytest.mark.parametrize("policy", ["", "allow"])
def test_undeclared_fallback_fails_the_run(tmp_path: Path, policy: str) -> None:
    """A device without kernels runs a model if the user allows it, and only then."""
    Fake("bare", broken.GOOD).install(tmp_path)
    words = ["generate", "--platform", "bare", "--max-tokens", "1", "--max-model-len", "64", "A"]
    settings = {"FD_PLUGINS_ONLY": "bare", **({"FD_FALLBACK": policy} if policy else {})}
    done = python(tmp_path, "-m", "fd_core", *words, "--kv-cache-memory", "2M", **settings)
    assert done.returncode == (0 if policy else 1), done.stderr
    if not policy:
        assert "[NO_KERNEL]" in done.stderr
        assert "fix: FD_FALLBACK=warn runs it on the NumPy oracle" in done.stderr
        assert "Traceback" not in done.stderr


def called_in_core() -> set[str]:
    """Names of attributes that fd_core outside of its interfaces calls or passes on."""
    files = [file for file in CORE.rglob("*.py") if "api" not in file.relative_to(CORE).parts]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("interface", [Platform, AttentionBackend, QuantMethod])
def test_every_method_of_an_interface_is_live(interface: type) -> None:
    names = [
        n for n, v in vars(interface).items() if not n.startswith("_") and callable(getattr(interface, n))
    ]
    assert names
    assert sorted(set(names) - called_in_core() - NOT_CALLED_YET) == []


def test_every_hook_is_asked() -> None:
    module = inspect.getmodule(fd_platforms)
    hooks = {name for name in vars(module) if name.startswith("fd_")}
    text = "\n".join(file.read_text(encoding="utf-8") for file in (CORE / "host").glob("*.py"))
    text += "\n".join(file.read_text(encoding="utf-8") for file in (CORE / "serving").rglob("*.py"))
    assert sorted(hook for hook in hooks if f'"{hook}"' not in text) == []


SOURCES = [CORE, *(CORE.parent / "plugins" / name / "src" for name in ("cpu", "cuda", "xpu"))]


def test_every_reason_says_what_to_do() -> None:
    """Code, subject, want, have and fix, wherever a verdict against something is written down."""
    short = [
        f"{file}:{node.lineno}"
        for folder in SOURCES
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("Verdict.no", "Reason")
        and not any(isinstance(argument, ast.Starred) for argument in node.args)
        and len(node.args) + len(node.keywords) < 5
    ]
    assert short == []


def documented_commands() -> list[list[str]]:
    text = (CORE.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
    blocks = text.split("```")[1::2]
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    commands = [line.removeprefix("FD_FALLBACK=allow ") for line in lines]
    return [shlex.split(line)[1:] for line in commands if line.startswith("fd ")]


@pytest.mark.parametrize("words", documented_commands(), ids=" ".join)
def test_documented_command_is_understood(words: list[str]) -> None:
    module = importlib.import_module(f"fd_core.cli.{words[0].replace('-', '_')}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)
    parser.parse_args(words[1:])
