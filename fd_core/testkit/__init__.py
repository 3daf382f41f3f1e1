"""What plug-in authors run: every op's cases against its oracle, and a small model, on their device.

A test module of a plug-in is three lines:

    from fd_core.testkit import conformance

    globals().update(conformance("mydevice"))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def conformance(
    platform: str, ops: Sequence[str] | None = None, dtypes: Sequence[str] | None = None, model: bool = True
) -> dict[str, Any]:
    """Tests and fixtures for the author's module. Ops without a kernel run on the oracles through copies.

    `ops` and `dtypes` narrow the run; `model` adds the small model. With `pytest --fd-report FILE` the
    findings are written as `fd conformance --json` writes them.
    """
    from fd_core.testkit.authors import generate

    return generate(platform, ops, dtypes, model)


__all__ = ["conformance"]
