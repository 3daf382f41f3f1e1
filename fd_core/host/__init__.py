"""Find, check, probe, load and freeze plug-ins; open devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fd_core.api.platform import Platform


def current_platform() -> Platform:
    """The platform in use, detected on first call (`FD_PLATFORM` overrides)."""
    from fd_core.host.session import current_session

    return current_session().platform
