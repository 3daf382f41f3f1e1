"""`fd`, also `fd-core` and `python -m fd_core`. A command is one module, imported when it is chosen.

The module of a command has `add_arguments(parser)` and `run(args) -> int`, the exit status.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from fd_core import __version__

#: Commands by name: what `fd --help` says of them. The module is `fd_core.cli.<name>`, with _ for -.
COMMANDS: dict[str, str] = {
    "serve": "serve a model over HTTP (OpenAI's API)",
    "generate": "complete a prompt in the terminal",
    "bench": "measure prefill and decode speed of a model",
    "quantize": "convert a model folder to integer weights, once",
    "doctor": "show devices, plug-ins, versions and what is wrong with them",
    "why": "explain which kernel an op uses, and why not the others",
    "conformance": "check a platform's kernels against the oracles and contracts",
    "new-plugin": "write a plug-in for a new device, ready to install",
    "matrix": "list every op, dtype and device with its kernel or the reasons",
}
USAGE_ERROR, FAILURE, INTERRUPTED = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    if words[0] in ("-V", "--version"):
        sys.stdout.write(f"fd-core {__version__}\n")
        return 0
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(COMMANDS)}"
        sys.stderr.write(f"fd: no command is called {words[0]!r}; {hint}\n")
        return USAGE_ERROR
    return run(words[0], words[1:])


def overview() -> str:
    rows = "\n".join(f"  {name:12} {text}" for name, text in COMMANDS.items())
    return f"usage: fd COMMAND [options]\n\ncommands:\n{rows}\n\n`fd COMMAND --help` shows its options.\n"


def run(name: str, words: Sequence[str]) -> int:
    """Errors that explain themselves end the program without a traceback (FD_LOG=debug shows it)."""
    module = importlib.import_module(f"fd_core.cli.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(prog=f"fd {name}", description=COMMANDS[name])
    module.add_arguments(parser)
    args = parser.parse_args(words)
    from fd_core.api.platform import DeviceError
    from fd_core.host.errors import FdError

    try:
        set_up_logging()
        return int(module.run(args))
    except BrokenPipeError:  # the reader has gone; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (FdError, DeviceError, ValueError, OSError, MemoryError) as error:
        logging.getLogger("fd").debug("details", exc_info=True)
        sys.stderr.write(f"fd {name}: {error}\n")
        return FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED


def set_up_logging() -> None:
    """Warnings of the `fd` loggers go to standard error as text; FD_LOG and FD_LOG_LEVEL ask for more.

    A program that calls `main` and has set up logging keeps what it has.
    """
    from fd_core.observe.logs import configure

    if logging.getLogger("fd").handlers or logging.getLogger().handlers:
        return
    configure("text", os.environ.get("FD_LOG") or os.environ.get("FD_LOG_LEVEL") or "warning")
