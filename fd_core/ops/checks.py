"""Checks of data (ids, lengths) that oracles share, with the message form of the compiled kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class DataError(ValueError):
    """What a tensor holds is wrong, not its shape or type. A device that works asynchronously launches
    before anybody could look: there kernels skip what they cannot follow, and touch nothing else."""


def check_range(op: str, argument: str, ids: Array, low: int, high: int) -> None:
    """Every id in [low, high); DataError names the first one outside and its position."""
    flat = ids.reshape(-1)
    bad = np.flatnonzero((flat < low) | (flat >= high))
    if bad.size:
        at = int(bad[0])
        raise DataError(
            f"{op}.{argument}: want indices in [{low}, {high}), have {flat[at]} at position {at}"
        )


def check(condition: bool, op: str, argument: str, want: object, have: object) -> None:
    """ValueError "op.argument: want ..., have ..." unless `condition`."""
    if not condition:
        raise ValueError(f"{op}.{argument}: want {want}, have {have}")


def check_data(condition: bool, op: str, argument: str, want: object, have: object) -> None:
    """As `check`, of what a tensor holds: DataError."""
    if not condition:
        raise DataError(f"{op}.{argument}: want {want}, have {have}")
