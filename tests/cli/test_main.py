"""The `fd` frame: help without imports, lazy commands, statuses, errors without tracebacks."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import types

import pytest

from fd_core import __version__
from fd_core.cli import main as cli
from fd_core.environ import VariableError
from fd_core.host.errors import PlatformError


def fd(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FD_")} | variables
    command = [sys.executable, "-m", "fd_core", *words]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_help_lists_every_command_without_importing_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text and summary in text for name, summary in cli.COMMANDS.items())
    code = "from fd_core.cli.main import main; import sys; main([]); print([m for m in sys.modules if m in "
    code += "('numpy', 'pydantic', 'pluggy', 'tvm_ffi', 'fd_core.cli.serve', 'fd_core.cli.doctor')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_is_quick() -> None:
    def seconds() -> float:
        started = time.perf_counter()
        assert fd("--help").returncode == 0
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 0.3


def test_version() -> None:
    assert fd("--version").stdout == f"fd-core {__version__}\n"


def test_unknown_command_names_the_nearest() -> None:
    done = fd("docter")
    assert done.returncode == 2
    assert done.stderr == "fd: no command is called 'docter'; did you mean 'doctor'?\n"


@pytest.mark.parametrize("name", ["doctor", "why", "matrix"])
def test_help_of_a_command(name: str) -> None:
    done = fd(name, "--help")
    assert done.returncode == 0
    assert f"usage: fd {name}" in done.stdout


class Command:
    """A command module made of one function."""

    @staticmethod
    def install(monkeypatch: pytest.MonkeyPatch, outcome: object) -> None:
        def run(args: argparse.Namespace) -> int:
            if isinstance(outcome, BaseException):
                raise outcome
            assert isinstance(outcome, int)
            return outcome

        module = types.ModuleType("fd_core.cli.probe")
        module.__dict__.update(add_arguments=lambda parser: None, run=run)
        monkeypatch.setitem(sys.modules, "fd_core.cli.probe", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", "a test")


@pytest.mark.parametrize(
    ("outcome", "status", "text"),
    [
        (0, 0, ""),
        (3, 3, ""),
        (PlatformError("no platform"), 1, "fd probe: no platform\n"),
        (VariableError("FD_X: want 1"), 1, "fd probe: FD_X: want 1\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_status(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcome: object,
    status: int,
    text: str,
) -> None:
    Command.install(monkeypatch, outcome)
    assert cli.main(["probe"]) == status
    assert capsys.readouterr().err == text


def test_unexpected_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    Command.install(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["probe"])


def test_named_platform_that_is_missing_fails_with_the_report() -> None:
    done = fd("why", "rms_norm", FD_PLATFORM="gpu7")
    assert done.returncode == 1
    assert "platform 'gpu7' was asked for and cannot be used: [NOT_INSTALLED]" in done.stderr
    assert "reference (fd-core): ok" in done.stderr


def test_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m fd_core matrix --platform reference | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
