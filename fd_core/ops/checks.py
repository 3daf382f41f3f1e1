"""Checks of data (ids, lengths) that oracles share, with the message form of the compiled kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def check_range(op: str, argument: str, ids: Array, low: int, high: int) -> None:
    """Every id in [low, high); ValueError names the first one outside and its position."""
    flat = ids.reshape(-1)
    bad = np.flatnonzero((flat < low) | (flat >= high))
    if bad.size:
        at = int(bad[0])
        raise ValueError(
            f"{op}.{argument}: want indices in [{low}, {high}), have {flat[at]} at position {at}"
        )


def check(condition: bool, op: str, argument: str, want: object, have: object) -> None:
    """ValueError "op.argument: want ..., have ..." unless `condition`."""
    if not condition:
        raise ValueError(f"{op}.{argument}: want {want}, have {have}")
