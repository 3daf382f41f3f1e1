"""Kernel records, read from the table that also drives the build."""

from __future__ import annotations

from pathlib import Path

from fd_core.api.dtype import dtype
from fd_core.api.kernel import Kernel, Numerics, Require
from fd_cpu.table import Entry, read_table


def table_file() -> Path:
    here = Path(__file__).parent
    installed = here / "kernels.toml"
    return installed if installed.exists() else here.parents[1] / "kernels.toml"


def kernel(entry: Entry) -> Kernel:
    dtypes = {name: tuple(map(dtype, types)) for name, types in entry.dtypes.items()}
    return Kernel(
        op=entry.op,
        provider="fd-cpu",
        target=f"fd_cpu.library:{entry.op}",
        requires=Require(dtypes=dtypes),
        priority=100,
        numerics=Numerics(entry.numerics),
        source=" ".join(f"csrc/{file}" for file in entry.sources),
    )


def kernels() -> list[Kernel]:
    return [kernel(entry) for entry in read_table(table_file()).ops.values()]
