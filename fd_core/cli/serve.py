"""`fd serve`: the OpenAI-compatible server."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from fd_core.engine.client import EngineClient


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from fd_core.cli.options import add_engine_options
    from fd_core.serving.flags import add_arguments as add_serving_options

    parser.add_argument("model", nargs="?", default="", help="model folder (default: the embedded model)")
    parser.add_argument("--model", dest="model_option", default="", help="the same, as an option")
    add_serving_options(parser)
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    from fd_core.cli.options import engine_config
    from fd_core.engine.build import model_folder
    from fd_core.engine.process_client import ProcessEngine
    from fd_core.serving.flags import configure_logs, serve_config
    from fd_core.serving.server import serve

    configure_logs(args)
    config = engine_config(args, args.model or args.model_option)
    config.check()

    async def start(progress: Callable[[str], None]) -> EngineClient:
        engine = ProcessEngine(config)
        await engine.start(progress)
        return engine

    return serve(serve_config(args, model_folder(config)), start)
