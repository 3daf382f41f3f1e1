"""fd-core: an LLM inference engine that knows no hardware.

Importing this package is cheap: it reads no plug-in, opens no file and pulls in neither NumPy nor a
kernel library. `fd_core.current_platform` finds the platform on first access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fd_core.api.platform import Platform

    current_platform: Platform


def __getattr__(name: str) -> Any:
    if name == "current_platform":
        from fd_core.host import current_platform

        return current_platform()
    raise AttributeError(f"module 'fd_core' has no attribute {name!r}")
