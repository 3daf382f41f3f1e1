"""Kernel records, read from the table that also drives the build."""

from __future__ import annotations

from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import dtype
from fd_core.api.kernel import Kernel, Numerics, Require
from fd_cuda.arch import BF16_FROM, LADDER, rung, without_bf16
from fd_cuda.table import Entry, read_table, table_file


def kernels(device: DeviceInfo) -> list[Kernel]:
    """Every op's records; the targets name the device's rung, which the build may lack."""
    target = rung(device.arch_rank).name
    entries = read_table(table_file()).ops.values()
    return [record for entry in entries for record in records(entry, target)]


def records(entry: Entry, rung_name: str) -> list[Kernel]:
    """One record, or two where the types differ below and above `BF16_FROM`."""
    types = {name: tuple(map(dtype, names)) for name, names in entry.dtypes.items()}
    narrow = {name: without_bf16(given) for name, given in types.items()}
    low, high = bounds(entry)
    if narrow == types:
        return [_record(entry, rung_name, types, low, high)]
    late = _record(entry, rung_name, types, max(low, BF16_FROM), high)
    if low >= BF16_FROM or not all(narrow.values()):
        return [late]
    return [late, _record(entry, rung_name, narrow, low, BF16_FROM - 1)]


def bounds(entry: Entry) -> tuple[int, int | None]:
    """(lowest, highest) capability that the source supports."""
    if not entry.only:
        return entry.first, None
    ranks = [arch.sm for arch in LADDER if arch.target in entry.only]
    return min(ranks), max(ranks)


def _record(entry: Entry, rung_name: str, types: dict, low: int, high: int | None) -> Kernel:  # type: ignore[type-arg]
    name = f"sm_{low} or newer" if high is None else f"sm_{low} to sm_{high}"
    return Kernel(
        op=entry.op,
        provider="fd-cuda",
        target=f"fd_cuda.library:{rung_name}.{entry.op}",
        requires=Require(arch=(low, high), arch_name=name, dtypes=types),
        priority=100,
        numerics=Numerics(entry.numerics),
        source=" ".join(f"csrc/{file}" for file in entry.sources),
    )
