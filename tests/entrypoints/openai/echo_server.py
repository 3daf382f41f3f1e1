"""A server program for the tests that need a process of its own.

python echo_server.py FOLDER '{"port": 0, ...}' '{"step_time": 0.01, ...}'

Options of the second object: those of EchoEngine, `load_seconds` before it is ready, `load_error`.
SIGUSR1 kills the engine, SIGUSR2 stalls it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from fd_core.observe.logs import configure
from fd_core.serving.config import ServeConfig
from fd_core.serving.server import serve
from fd_core.testkit.echo import EchoEngine


def main() -> int:
    folder, config, options = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    configure("json")

    async def factory(progress):
        progress("reading weights")
        await asyncio.sleep(options.pop("load_seconds", 0.0))
        if error := options.pop("load_error", ""):
            raise RuntimeError(error)
        engine = EchoEngine(**options)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, engine.die)
        loop.add_signal_handler(signal.SIGUSR2, engine.stall)
        return engine

    return serve(ServeConfig(model_dir=folder, served_model_names=("toy",), **config), factory)


if __name__ == "__main__":
    sys.exit(main())
