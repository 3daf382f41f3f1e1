"""Frozen dispatch: one bound target per op, chosen once when a device is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fd_core.api.kernel import Kernel
from fd_core.api.verdict import Verdict
from fd_core.host.errors import UnsupportedOpError


class FrozenOp:
    """A bound kernel and its call counter. Arguments: the schema's, in order, outputs included."""

    __slots__ = ("calls", "kernel", "losers", "name", "target")

    def __init__(
        self,
        name: str,
        kernel: Kernel,
        target: Callable[..., Any],
        losers: tuple[tuple[Kernel, Verdict], ...] = (),
    ) -> None:
        self.name = name
        self.kernel = kernel
        self.target = target
        self.losers = losers
        self.calls = 0

    def __call__(self, *args: Any) -> None:
        self.calls += 1
        self.target(*args)


@dataclass(frozen=True)
class Dispatch:
    """The ops of one opened device; `dispatch.rms_norm(x, weight, eps, out)`.

    `missing` holds, for every op without a kernel, the reasons.
    """

    device: str
    table: Mapping[str, FrozenOp]
    missing: Mapping[str, Verdict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.__dict__.update(self.table)

    def __getattr__(self, name: str) -> FrozenOp:
        verdict = self.missing.get(name, Verdict()) if not name.startswith("__") else Verdict()
        raise_missing(name, self.device, verdict)
        raise AssertionError  # unreachable

    def __contains__(self, name: str) -> bool:
        return name in self.table


def raise_missing(name: str, device: str, verdict: Verdict) -> None:
    if name.startswith("__"):
        raise AttributeError(name)
    why = f": {verdict}" if verdict.reasons else ": no op has this name"
    raise UnsupportedOpError(f"op {name!r} cannot run on {device}{why}", verdict)
