"""The kernel table, the ladder and the build plan: what is claimed is what is compiled. No GPU needed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fd_core.api import dtype as dt
from fd_core.ops.catalogue import catalogue

fd_cuda = pytest.importorskip("fd_cuda")
from fd_cuda import library  # noqa: E402
from fd_cuda.arch import LADDER, rung, simulated_devices  # noqa: E402
from fd_cuda.kernels import kernels  # noqa: E402
from fd_cuda.table import read_table  # noqa: E402

PLUGIN = Path(__file__).parents[2] / "plugins" / "cuda"
TABLE = read_table(PLUGIN / "kernels.toml")
ENTRIES = {**TABLE.ops, **TABLE.private}
PLAN = runpy.run_path(str(PLUGIN / "build_plan.py"))


@pytest.mark.parametrize("name", ENTRIES)
def test_sources_export_what_the_table_claims(name: str) -> None:
    texts = [(PLUGIN / "csrc" / source).read_text() for source in ENTRIES[name].sources]
    assert any(re.search(rf"FD_EXPORT\({name}\)", text) for text in texts)


def test_no_source_without_an_entry() -> None:
    listed = {source for entry in ENTRIES.values() for source in entry.sources} | set(TABLE.common)
    there = {path.name for path in (PLUGIN / "csrc").iterdir() if path.suffix in (".cu", ".cc")}
    assert there == listed


def test_ops_and_parameters_exist() -> None:
    for name, entry in TABLE.ops.items():
        parameters = {param.name for param in catalogue()[name].spec.params}
        assert set(entry.dtypes) <= parameters, name


def test_kernels_lie_outside_anonymous_namespaces() -> None:
    """sm_70's table refers to kernels by symbol."""
    for source in (PLUGIN / "csrc").glob("*.cu"):
        device_part = source.read_text().partition("#ifndef __CUDACC_RTC__")[0]
        assert not re.search(r"namespace\s*\{", device_part), source.name


@pytest.mark.parametrize("info", [info for _, info in simulated_devices()], ids=lambda info: info.arch)
def test_bfloat16_begins_at_sm_80(info) -> None:
    taken = [
        kernel
        for kernel in kernels(info)
        if kernel.requires.check_device(kernel.op, info).ok
        and any(dt.bfloat16 in types for types in kernel.requires.dtypes.values())
    ]
    assert bool(taken) is (info.arch_rank >= 80)


@pytest.mark.parametrize(
    ("sm", "name"), [(70, "sm_70"), (72, "sm_70"), (87, "sm_86"), (90, "sm_90"), (121, "sm_120")]
)
def test_a_device_runs_the_highest_rung_of_its_major(sm: int, name: str) -> None:
    assert rung(sm).name == name


@pytest.mark.parametrize("sm", [50, 61, 110])
def test_a_major_without_a_rung_is_refused(sm: int) -> None:
    with pytest.raises(ValueError, match="want one of sm_70"):
        rung(sm)


@given(
    st.lists(st.sampled_from([arch.target for arch in LADDER]), unique=True, min_size=1),
    st.sampled_from([";", ",", " "]),
)
def test_archs_are_read_in_any_spelling(targets: list[str], separator: str) -> None:
    text = separator.join(f"sm_{target.rstrip('a')}" for target in targets)
    assert set(PLAN["parse_archs"](text)) == set(targets)


def test_no_archs_and_all_archs() -> None:
    assert PLAN["parse_archs"]("none") == ()
    assert set(PLAN["parse_archs"]("")) == {arch.target for arch in LADDER}


def test_unknown_arch_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"want none, or some of 70, .*have 61"):
        PLAN["parse_archs"]("61 90")


def test_the_plan_compiles_each_file_where_its_entries_run_and_nowhere_else() -> None:
    targets = ("70", "80", "90a")
    plan = PLAN["sources"](PLAN["read_toml"]("kernels.toml"), targets)
    wanted = {source: set(targets) for source in TABLE.common}
    for entry in ENTRIES.values():
        for source in entry.sources:
            found = {target for target in targets if entry.runs_on(target)}
            wanted[source] = wanted.get(source, set()) | found
    assert {source: set(found) for source, found in plan.items()} == {s: w for s, w in wanted.items() if w}
    assert set(plan["paged_attention_sm90.cu"]) == {"90a"}


def test_a_build_without_kernels_contains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FD_CUDA_LIBRARY", raising=False)
    monkeypatch.setattr(library, "FILE", library.FILE.with_name("none.so"))
    library.stamp.cache_clear()
    assert library.targets() == ()
    assert all(not verdict.ok for _, verdict in fd_cuda.fd_doctor(simulated_devices()[0][1]))
    library.stamp.cache_clear()
