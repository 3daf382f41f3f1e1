"""What the operator decides about the server. Frozen; flags and files fill it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from fd_core.host.errors import FdError
from fd_core.serving.inputs.limits import Limits


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Times are seconds, sizes bytes. `model_dir` holds tokenizer and templates."""

    model_dir: Path
    served_model_names: tuple[str, ...] = ()
    chat_template: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    api_key_file: Path | None = None
    allow_unauthenticated: bool = False
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_ca_certs: str | None = None
    allowed_origins: tuple[str, ...] = ()
    root_path: str = ""
    max_request_bytes: int = 32 << 20
    max_header_bytes: int = 64 << 10
    max_json_depth: int = 64
    max_queue: int = 256
    request_timeout: float = 0.0
    header_timeout: float = 30.0
    body_timeout: float = 60.0
    keep_alive_comment: float = 15.0
    drain_delay: float | None = None
    shutdown_timeout: float = 30.0
    engine_stall_timeout: float = 60.0
    dead_linger: float = 2.0
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    strict_fields: bool = False
    ui: bool = True
    metrics: bool = True
    metrics_compat: tuple[str, ...] = ("vllm",)
    log_requests: bool = True
    limits: Limits = field(default_factory=Limits)

    @property
    def model_name(self) -> str:
        return self.served_model_names[0] if self.served_model_names else self.model_dir.name

    @property
    def model_names(self) -> tuple[str, ...]:
        return self.served_model_names or (self.model_dir.name,)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.uds is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def drain_seconds(self) -> float:
        """How long a stopping server still takes requests: load balancers need a moment to look away."""
        default = 0.0 if self.loopback else 5.0
        return default if self.drain_delay is None else self.drain_delay

    def check_exposure(self, has_keys: bool) -> None:
        """Refuse an open door: a public address without any key."""
        if not self.loopback and not has_keys and not self.allow_unauthenticated:
            raise FdError(
                f"--host {self.host}: reachable from other machines, but no API key is set; "
                "give --api-key, --api-key-file or FD_API_KEY, or say --allow-unauthenticated"
            )
