"""What ran where: one row per op that was called, counted by the frozen ops themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from fd_core.host.dispatch import Dispatch, FrozenOp


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a provider's kernels come from. `variant`: the binary in use (ISA level, architecture)."""

    distribution: str
    version: str
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One op's use since the device was opened. `reason`: of the first fallback."""

    op: str
    provider: str
    distribution: str
    version: str
    variant: str
    calls: int
    fallbacks: int
    reason: str


class Ledger:
    """Rows are read from the live counters; nothing is recorded on the call path but a count."""

    def __init__(self, ops: Dispatch, origins: Mapping[str, Origin]) -> None:
        self._ops = ops
        self._origins = dict(origins)

    def rows(self, all_ops: bool = False) -> list[Row]:
        """Ops that were called (or every op), by name."""
        table = sorted(self._ops.table.items())
        return [self._row(op) for _, op in table if all_ops or op.calls]

    def _row(self, op: FrozenOp) -> Row:
        provider = op.kernel.provider
        origin = self._origins.get(provider, Origin(provider, ""))
        reason = "" if op.reason.ok else str(op.reason)
        where = (origin.distribution, origin.version, origin.variant)
        return Row(op.name, provider, *where, op.calls, op.fallbacks, reason)

    def json(self) -> list[dict[str, str | int]]:
        return [asdict(row) for row in self.rows()]

    def text(self) -> str:
        """A table for people; empty when nothing ran."""
        lines = [f"{'op':34} {'provider':24} {'variant':8} {'calls':>9} {'fallbacks':>9}"]
        for row in self.rows():
            provider = f"{row.distribution} {row.version}".strip()
            tail = f"  {row.reason}" if row.reason else ""
            cells = f"{row.op:34} {provider:24} {row.variant:8} {row.calls:9} {row.fallbacks:9}{tail}"
            lines.append(cells)
        return "\n".join(lines) if len(lines) > 1 else ""

    def __str__(self) -> str:
        return self.text()

    @property
    def fallbacks(self) -> int:
        """Calls of all ops that another kernel than the device's best served."""
        return sum(op.fallbacks for op in self._ops.table.values())
