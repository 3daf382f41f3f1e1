"""`fd serve`'s own flags, and the configuration they make."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from fd_core.serving.config import ServeConfig

Row = tuple[str, dict[str, Any]]

# A flag's destination is the field of ServeConfig; what is not given keeps the field's default.
HTTP: tuple[Row, ...] = (
    ("--host", {"help": "address to listen on; 127.0.0.1 is this machine alone"}),
    ("--port", {"type": int, "help": "port; 0 picks a free one and logs it"}),
    ("--uds", {"metavar": "PATH", "help": "listen on this unix socket instead"}),
    ("--api-key", {"dest": "api_keys", "action": "append", "help": "a valid key; repeat for several"}),
    ("--api-key-file", {"type": Path, "help": "file with one key a line, read again on SIGHUP"}),
    (
        "--allow-unauthenticated",
        {"action": "store_true", "help": "listen on a public address without keys"},
    ),
    ("--ssl-keyfile", {}),
    ("--ssl-certfile", {}),
    ("--ssl-ca-certs", {}),
    ("--allowed-origins", {"nargs": "+", "help": "origins of web pages that may call (default: none)"}),
    ("--root-path", {"help": "path prefix that a proxy in front strips"}),
    ("--no-ui", {"dest": "ui", "action": "store_false", "help": "no page at /"}),
)
LIMITS: tuple[Row, ...] = (
    ("--max-request-bytes", {"type": int, "help": "largest body"}),
    ("--max-queue", {"type": int, "help": "completions that may wait; beyond, clients get 429"}),
    ("--request-timeout", {"type": float, "help": "seconds a request may take (0: any)"}),
    ("--drain-delay", {"type": float, "help": "seconds between SIGTERM and refusing requests"}),
    ("--shutdown-timeout", {"type": float, "help": "seconds that running requests get to finish"}),
    ("--engine-stall-timeout", {"type": float, "help": "seconds without a step that count as death"}),
    ("--strict-fields", {"action": "store_true", "help": "refuse unknown request fields"}),
)
MODEL: tuple[Row, ...] = (
    ("--served-model-name", {"dest": "served_model_names", "nargs": "+", "help": "names in the API"}),
    ("--chat-template", {"help": "file (or text) in place of the model's template"}),
    ("--reasoning-parser", {"help": "name, or none (default: by the model's template)"}),
    ("--tool-call-parser", {"help": "name, or none (default: by the model's template)"}),
)
OBSERVE: tuple[Row, ...] = (
    ("--no-metrics", {"dest": "metrics", "action": "store_false", "help": "no /metrics"}),
    (
        "--metrics-compat",
        {"nargs": "*", "choices": ["vllm", "fastdeploy"], "help": "also under these servers' names"},
    ),
    ("--disable-access-log", {"dest": "log_requests", "action": "store_false"}),
)
DEFAULTS = {f.name: f.default for f in dataclasses.fields(ServeConfig)}
GROUPS = {"HTTP": HTTP, "request limits": LIMITS, "model behaviour": MODEL, "observability": OBSERVE}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for title, rows in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag, settings in rows:
            group.add_argument(flag, default=argparse.SUPPRESS, **_with_default(flag, settings))
    logs = parser.add_argument_group("logs")
    logs.add_argument(
        "--log-format", choices=["json", "text"], help="default: text on a terminal, else json"
    )
    logs.add_argument("--log-level", help="info, or by subtree: info,fd.engine=debug (default: FD_LOG)")
    logs.add_argument(
        "--enable-auto-tool-choice", action="store_true", help="accepted for compatibility: it always is"
    )


def _with_default(flag: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Help that ends with the default, where there is one worth telling."""
    name = settings.get("dest", flag.lstrip("-").replace("-", "_"))
    default = DEFAULTS.get(name)
    if isinstance(default, bool) or not isinstance(default, (int, float, str)):
        return settings
    return {**settings, "help": f"{settings.get('help', '')} (default {default})".strip()}


def serve_config(args: argparse.Namespace, model_dir: Path) -> ServeConfig:
    """The server's configuration from parsed arguments."""
    fields = {f.name for f in dataclasses.fields(ServeConfig)}
    given = {name: value for name, value in vars(args).items() if name in fields}
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    return ServeConfig(model_dir=model_dir, **given)


def configure_logs(args: argparse.Namespace) -> None:
    """Logs as the flags say, here and (through the environment) in the engine's process."""
    from fd_core.observe.logs import configure

    for name, given in (("FD_LOG_FORMAT", args.log_format), ("FD_LOG", args.log_level)):
        if given:
            os.environ[name] = given
    configure()
