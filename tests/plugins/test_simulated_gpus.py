"""What `fd matrix`, `fd why` and the engine say of every GPU generation, without one: V100 above all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fd_core.api import dtype as dt
from fd_core.api.attention import AttentionSpec
from fd_core.api.device import DeviceInfo
from fd_core.api.verdict import ReasonCode
from fd_core.cli import main
from fd_core.cli.matrix import Cell, Matrix, build
from fd_core.engine.build import refuse_dtype
from fd_core.host.errors import UnsupportedOpError
from fd_core.host.freeze import freeze
from fd_core.host.ledger import Ledger
from fd_core.host.plugins import plugin_host
from fd_core.host.reference import ReferencePlatform
from fd_core.host.session import Session
from fd_core.host.simulate import simulated
from fd_core.ops.catalogue import catalogue

pytest.importorskip("fd_cuda")
from fd_cuda import library
from fd_cuda.attention import CudaAttention
from fd_cuda.table import read_table, table_file

PLUGIN = Path(__file__).parents[2] / "plugins" / "cuda"
LADDER = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
WITHOUT_BF16 = LADDER[:2]
Cells = dict[tuple[str, str, str], Cell]

#: What FastDeploy's guide leaves out on V100 and a kernel of ours serves there: op, type, file.
SERVED = [
    ("append_attention", "float16", "csrc/append_attention.cu csrc/paged_attention.cu"),
    ("paged_attention", "float16", "csrc/paged_attention.cu"),
    ("gptq_marlin_repack", "int32", "csrc/gptq_marlin_repack.cu"),
    ("winx_unzip", "float16", "csrc/winx_unzip.cu"),
    ("static_scaled_fp8_quant", "float16", "csrc/static_scaled_fp8_quant.cu"),
    ("dynamic_scaled_fp8_quant", "float16", "csrc/dynamic_scaled_fp8_quant.cu"),
    ("dynamic_per_token_scaled_fp8_quant", "float16", "csrc/dynamic_per_token_scaled_fp8_quant.cu"),
    ("per_token_quant", "float16", "csrc/per_token_quant.cu"),
    ("weight_only_linear", "float16", "csrc/weight_only_linear.cu csrc/linear.cu csrc/cublaslt.cc"),
]
#: And what is refused there: op, type, the first architecture that has it.
REFUSED = [
    ("cutlass_scaled_mm", "int8", "sm_80 or newer"),
    ("cutlass_scaled_mm", "float8_e4m3fn", "sm_80 or newer"),
    ("fused_hadamard_quant_fp8", "bfloat16", "sm_80 or newer"),
]
#: Its other operators, by what serves them instead ("": nothing does).
OTHERS = {
    "machete_prepack_B": "weight_only_linear",
    "machete_mm": "weight_only_linear",
    "w4afp8_gemm": "weight_only_linear",
    "w4afp8_gemm_weight_convert": "weight_only_linear",
    "moe_wna16_marlin_gemm": "moe_expert_ffn",
    "cutlass_fp8_fp8_half_gemm_fused": "cutlass_scaled_mm",
    "cutlass_fp8_fp8_half_block_gemm_fused": "",
    "multi_head_latent_attention": "",
    "prefill_mla_write_cache": "",
    "decode_mla_write_cache": "",
}


@pytest.fixture(scope="module")
def cells() -> Cells:
    matrix = build(plugin_host(), sims=[f"cuda:{arch}" for arch in LADDER])
    return {(cell.arch, cell.op, cell.dtype): cell for cell in matrix.cells}


def facts(arch: str) -> DeviceInfo:
    return simulated(plugin_host(), f"cuda:{arch}")[1]


class TestMatrix:
    def test_the_ladder_is_the_one_described(self) -> None:
        described = [info.arch for name, info in plugin_host().simulated_devices() if name == "cuda"]
        assert described == list(LADDER)

    @pytest.mark.parametrize("arch", LADDER)
    def test_every_op_and_type_has_a_source_or_reasons(self, cells: Cells, arch: str) -> None:
        mine = [cell for (a, _, _), cell in cells.items() if a == arch]
        assert {cell.op for cell in mine} == set(catalogue())
        for cell in mine:
            assert cell.built is (cell.served == "kernel")
            assert bool(cell.reasons) is (cell.served == "oracle"), cell
            for reason in cell.reasons:
                assert reason.subject, cell
                assert reason.want, cell
                assert reason.have, cell
                assert reason.fix, cell
            lacks = {ReasonCode.ARCH.value, ReasonCode.DTYPE.value, ReasonCode.NO_KERNEL.value}
            codes = {reason.code for reason in cell.reasons}
            if cell.source and not cell.built:
                assert ReasonCode.NOT_BUILT.value in codes
            elif not cell.source:
                assert codes & lacks, cell

    @pytest.mark.skipif(not (PLUGIN / "csrc").exists(), reason="fd-cuda's sources are not here")
    def test_sources_are_files(self, cells: Cells) -> None:
        named = {file for cell in cells.values() for file in cell.source.split()}
        assert len(named) > 50
        assert [file for file in named if not (PLUGIN / file).is_file()] == []

    def test_a_newer_architecture_serves_what_an_older_one_does(self, cells: Cells) -> None:
        before: set[tuple[str, str]] = set()
        for arch in LADDER:
            now = {(op, dtype) for (a, op, dtype), cell in cells.items() if a == arch and cell.source}
            assert before - now == set(), arch
            before = now
        assert len(before) > 100

    def test_what_is_not_built_is_told_once_and_with_its_fix(self, cells: Cells) -> None:
        if library.FILE.exists():
            pytest.skip("this build has kernels")
        reasons = cells["sm_70", "rms_norm", "float16"].reasons
        (built,) = {reason for reason in reasons if reason.code == ReasonCode.NOT_BUILT.value}
        assert "[NOT_BUILT]" not in built.want + built.have
        assert "FD_CUDA_ARCHS" in built.fix

    def test_command(self, cells: Cells, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main(["matrix", "--sim", "cuda:sm_70", "--json"]) == 0
        matrix = Matrix.model_validate_json(capsys.readouterr().out)
        assert "fd-cuda" in matrix.plugins
        assert {(c.arch, c.op, c.dtype): c for c in matrix.cells} == {
            key: cell for key, cell in cells.items() if key[0] == "sm_70"
        }

    def test_text_gives_each_reason_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main(["matrix", "--sim", "cuda:sm_70"]) == 0
        lines = capsys.readouterr().out.splitlines()
        reasons = [line for line in lines if line.startswith("  [")]
        assert reasons
        assert len(set(reasons)) == len(reasons)
        assert all("; fix: " in line for line in reasons)
        served = next(line for line in lines if line.startswith("rms_norm "))
        assert served.endswith("bfloat16 -")


class TestLeftOutByOthersOnV100:
    @pytest.mark.parametrize(("op", "dtype", "source"), SERVED)
    def test_served(self, cells: Cells, op: str, dtype: str, source: str) -> None:
        assert cells["sm_70", op, dtype].source == source

    @pytest.mark.parametrize(("op", "dtype", "want"), REFUSED)
    def test_refused(self, cells: Cells, op: str, dtype: str, want: str) -> None:
        cell = cells["sm_70", op, dtype]
        assert cell.source == ""
        (arch,) = {reason for reason in cell.reasons if reason.code == ReasonCode.ARCH.value}
        assert (arch.subject, arch.want, arch.have) == (op, want, "sm_70")
        assert f"use {want}" in arch.fix
        assert cells["sm_80", op, dtype].source

    @pytest.mark.parametrize(("name", "instead"), OTHERS.items())
    def test_without_an_op(self, name: str, instead: str, capsys: pytest.CaptureFixture[str]) -> None:
        if name in catalogue():
            pytest.skip("it has become an op: the matrix tells of it")
        assert main.main(["why", name, "--sim", "cuda:sm_70"]) == 1
        text = capsys.readouterr().err
        assert f"[NO_KERNEL] operator {name!r}: want an op of the catalogue, have none" in text
        assert ("; fix: use " if instead else "; fix: dir(") in text
        assert instead in text
        assert main.main(["matrix", "--op", name, "--sim", "cuda:sm_70"]) == 1
        assert not instead or instead in catalogue()

    def test_instructions_of_one_architecture_stay_there(self) -> None:
        """Warp-group products are private to sm_90; the op that they speed up runs everywhere."""
        table = read_table(table_file())
        assert table.private["paged_attention_sm90"].only == ("90a",)
        assert all(table.ops["paged_attention"].runs_on(arch.removeprefix("sm_")) for arch in LADDER)


def session(info: DeviceInfo) -> Session:
    """As if this build had every kernel that the sources have."""
    kernels = [replace(kernel, target=print) for kernel in plugin_host().kernels(info)]
    ops = freeze(catalogue(), kernels, info, policy="error")
    return Session(ReferencePlatform(), info, ops, [], {}, Ledger(ops, {}))


class TestCheckpointsInBfloat16:
    @pytest.mark.parametrize("arch", WITHOUT_BF16)
    def test_refused_with_the_type_to_ask_for(self, arch: str) -> None:
        with pytest.raises(UnsupportedOpError, match="fix: --dtype float16") as raised:
            refuse_dtype(session(facts(arch)), dt.bfloat16)
        (reason,) = raised.value.verdict.reasons
        assert (reason.code, reason.have) == (ReasonCode.DTYPE, "bfloat16")
        assert reason.want == "float16 | float32"
        assert arch in reason.subject

    @pytest.mark.parametrize("arch", LADDER)
    def test_taken_elsewhere(self, arch: str) -> None:
        kinds = (dt.float16, dt.float32, *(() if arch in WITHOUT_BF16 else (dt.bfloat16,)))
        for kind in kinds:
            refuse_dtype(session(facts(arch)), kind)

    @pytest.mark.parametrize("op", ["linear", "rms_norm", "embedding", "paged_attention"])
    def test_why(self, op: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main(["why", op, "--dtype", "bfloat16", "--sim", "cuda:sm_70", "--json"]) == 1
        report = json.loads(capsys.readouterr().out)
        assert "cuda" not in {plugin["name"] for plugin in report["plugins_out"]}
        rows = report["kernels"]
        fixes = [r["fix"] for row in rows for r in row["reasons"] if r["code"] == ReasonCode.DTYPE.value]
        assert fixes
        assert all(fix.endswith("a whole model: --dtype float16") for fix in fixes)

    @pytest.mark.parametrize("arch", LADDER)
    def test_attention(self, arch: str) -> None:
        spec = AttentionSpec(8, 2, 64, 0.125, dt.bfloat16, dt.bfloat16, 16)
        found = {
            kind: {r.code for r in CudaAttention.supports(_of(spec, kind), facts(arch)).reasons}
            for kind in (dt.float16, dt.bfloat16)
        }
        assert found[dt.float16] <= {ReasonCode.NOT_BUILT}
        assert (ReasonCode.DTYPE in found[dt.bfloat16]) is (arch in WITHOUT_BF16)


def _of(spec: AttentionSpec, kind: dt.DType) -> AttentionSpec:
    return replace(spec, dtype=kind, cache_dtype=kind)
