"""Faults on demand for the simulated device: `FD_SIM_FAULT="oom:5,nan:rms_norm"`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fd_core.api.verdict import ReasonCode, Verdict
from fd_core.host.errors import FdError

#: Fault -> what its argument is.
KINDS: Mapping[str, str] = {
    "oom": "the allocation that fails, from 1",
    "async": "the kernel call whose error surfaces at the next wait, from 1",
    "lost": "the kernel call at which the device disappears, from 1",
    "nan": "the op that writes a NaN",
    "random": "the op that gives another last bit at every second call",
    "stream": "the op that runs on a stream nobody waits for",
}
COUNTED = ("oom", "async", "lost")


@dataclass(frozen=True, slots=True)
class Faults:
    """`at`: number of the allocation or call by kind; `ops`: ops by kind."""

    at: Mapping[str, int] = field(default_factory=dict)
    ops: Mapping[str, str] = field(default_factory=dict)

    def due(self, kind: str, count: int) -> bool:
        return self.at.get(kind) == count

    def hits(self, kind: str, op: str) -> bool:
        return self.ops.get(kind) == op


def parse(rows: tuple[str, ...]) -> Faults:
    """FdError for a fault that does not exist or lacks its argument."""
    pairs = {row.partition(":")[0].strip(): row.partition(":")[2].strip() for row in rows}
    for kind, argument in pairs.items():
        number = argument.isdigit() and int(argument) > 0
        if kind not in KINDS or not argument or (kind in COUNTED and not number):
            want = "; ".join(f"{name}:({text})" for name, text in KINDS.items())
            verdict = Verdict.no(
                ReasonCode.POLICY, "FD_SIM_FAULT", want, f"{kind}:{argument}", "correct it"
            )
            raise FdError(str(verdict), verdict)
    at = {kind: int(argument) for kind, argument in pairs.items() if kind in COUNTED}
    return Faults(at, {kind: argument for kind, argument in pairs.items() if kind not in COUNTED})
