"""The environment as this plug-in reads it, at the time of the call."""

from __future__ import annotations

from functools import cache

from fd_core.environ import Variable, registry
from fd_xpu.variables import VARIABLES

registry.declare(Variable(**_row, owner="fd-xpu") for _row in VARIABLES)


def stands_in() -> bool:
    """Whether the user put Paddle's CPU place in the device's place. Never true by itself."""
    return bool(registry.value("FD_XPU_PLACE") == "cpu")


def use_fused() -> bool:
    return bool(registry.value("FD_XPU_FUSED"))


@cache
def check_ids(on_host: bool) -> bool:
    """Whether ids are read back and checked before a call; free where the memory is the host's."""
    wanted = registry.value("FD_XPU_CHECK_IDS")
    return on_host if wanted is None else bool(wanted)
