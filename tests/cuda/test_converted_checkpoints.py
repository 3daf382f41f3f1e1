"""One converted checkpoint on the GPU and elsewhere: by `fd quantize` on the GPU and on the CPU, and a
public one. What each must be is the model whose plain weights are what the codes mean, by the oracles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fd_cuda")
from safetensors.numpy import load_file, save_file

from fd_core.api.quant import Grid
from fd_core.cli.main import main
from fd_core.engine.build import EMBEDDED
from fd_core.llm import LLM, SamplingParams
from fd_core.quantization.codes import Codes, rounded_codes
from fd_core.quantization.formats import FORMATS
from fd_core.quantization.panels import Panels
from fd_core.quantization.stored_codes import nearest_steps
from tests.cuda.gpu import gpu_session

pytestmark = pytest.mark.device("cuda")
Array = np.ndarray[Any, Any]
INT8 = FORMATS["int8-panels-1"](Grid(-128, 127, 0))
GROUP = 64
#: Between bfloat16 activations, seven blocks deep, and float32 ones: some 2^-8 of logits near 8 each.
ATOL = 0.1


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    gpu_session("linear_int4", "linear_int8", "linear_int4_zero", "lookup_int8")


def grid_of(zero_point: bool) -> Grid:
    return Grid(-8, 7, GROUP, (-128, 127) if zero_point else None)


def folder_of(folder: Path, tensors: Mapping[str, Array], quantization: Mapping[str, Any] | None) -> Path:
    """The embedded model with other weights; plain ones in float32."""
    folder.mkdir()
    for file in EMBEDDED.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            (folder / file.name).symlink_to(file)
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((EMBEDDED / "config.json").read_text())
    raw |= {"quantization_config": dict(quantization)} if quantization else {"torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def decoded(stored: Mapping[str, Array], zero_point: bool) -> dict[str, Array]:
    """The plain tensors that a converted folder means, under the names of the embedded model's."""
    form = FORMATS["int4-zero-panels-1" if zero_point else "int4-panels-1"](grid_of(zero_point))
    meant = {name: array for name, array in stored.items() if name.endswith(("norm.weight", "bias"))}
    for name, panels in stored.items():
        layer = name.removesuffix(".qweight")
        if layer == name:
            continue
        if layer == "lm_head":
            codes = INT8.decode({"qweight": panels, "scale": stored["lm_head.scale"]}, 4096, 256)
            meant["model.embed_tokens.weight"] = codes.weight(0)
            continue
        shards = shards_of(layer)
        depth = 768 if layer.endswith("down_proj") else 256
        codes = form.decode({"qweight": panels}, sum(shards.values()), depth)
        rows = np.cumsum([0, *shards.values()])
        for one, first, end in zip(shards, rows, rows[1:], strict=False):
            meant[f"{one}.weight"] = codes.weight(GROUP)[first:end]
    return meant


def shards_of(layer: str) -> dict[str, int]:
    """The matrices that run as one with this first, and their outputs."""
    prefix, _, last = layer.rpartition(".")
    together = {"q_proj": {"q_proj": 256, "k_proj": 128, "v_proj": 128}, "o_proj": {"o_proj": 256}}
    together |= {"gate_proj": {"gate_proj": 768, "up_proj": 768}, "down_proj": {"down_proj": 256}}
    return {f"{prefix}.{name}": rows for name, rows in together[last].items()}


def logprobs(folder: Path, platform: str) -> tuple[list[int], Array]:
    llm = LLM(str(folder), platform=platform)
    params = SamplingParams(max_tokens=8, temperature=0.0, logprobs=1, ignore_eos=True)
    (output,) = llm.generate(["The project is"], params)[0].outputs
    return list(output.token_ids), np.array([p.logprob for p in output.logprobs or []])


def same_model(folder: Path, meant: Path) -> None:
    got, want = logprobs(folder, "cuda"), logprobs(meant, "reference")
    equal = [a == b for a, b in zip(got[0], want[0], strict=True)]
    count = equal.index(False) if False in equal else len(equal)
    assert count >= 1
    np.testing.assert_allclose(got[1][:count], want[1][:count], atol=ATOL)


@pytest.mark.parametrize("options", [(), ("--zero-point",)], ids=["symmetric", "zero points"])
def test_a_checkpoint_converted_on_the_gpu(options: tuple[str, ...], tmp_path: Path) -> None:
    words = ["--platform", "cuda", "--method", "wint4", "--calibration", "none", *options]
    assert main(["quantize", str(EMBEDDED), str(tmp_path / "out"), *words]) == 0
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.embed_tokens.weight" not in stored, "the table is the head's"
    meant = folder_of(tmp_path / "meant", decoded(stored, bool(options)), None)
    same_model(tmp_path / "out", meant)


@pytest.mark.parametrize("options", [(), ("--zero-point",)], ids=["symmetric", "zero points"])
def test_a_checkpoint_converted_on_the_cpu(options: tuple[str, ...], tmp_path: Path) -> None:
    """Its w4a8 runs as wint4."""
    pytest.importorskip("fd_cpu.library", reason="fd-cpu is not installed")
    words = ["--platform", "cpu", "--method", "w4a8", "--calibration", "none", *options]
    assert main(["quantize", str(EMBEDDED), str(tmp_path / "out"), *words]) == 0
    stored = load_file(tmp_path / "out" / "model.safetensors")
    meant = folder_of(tmp_path / "meant", decoded(stored, bool(options)), None)
    same_model(tmp_path / "out", meant)


def rounded(weight: Array, grid: Grid) -> Codes:
    wide = weight.astype(np.float32)
    steps = nearest_steps(wide, grid)
    return rounded_codes(wide, steps["scale"], steps.get("zero"), grid)


@pytest.mark.parametrize("zero_point", [False, True])
def test_a_folder_of_panels_put_together_here(zero_point: bool, tmp_path: Path) -> None:
    """As the CPU writes it (tests/quantization/test_code_formats.py)."""
    grid = grid_of(zero_point)
    form = FORMATS["int4-zero-panels-1" if zero_point else "int4-panels-1"](grid)
    assert isinstance(form, Panels)
    assert isinstance(INT8, Panels)
    plain = load_file(EMBEDDED / "model.safetensors")
    stored = {name: array for name, array in plain.items() if name.endswith("norm.weight")}
    for i in range(7):
        for last in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
            layer = f"model.layers.{i}.{last}"
            weight = np.concatenate([plain[f"{one}.weight"] for one in shards_of(layer)])
            stored |= {f"{layer}.{n}": a for n, a in form.encode(rounded(weight, grid)).items()}
    head = rounded(plain["model.embed_tokens.weight"], Grid(-128, 127, 0, by_effect=False))
    stored |= {f"lm_head.{name}": array for name, array in INT8.encode(head).items()}
    quantization = {
        "quantization": "wint4", "group_size": GROUP, "zero_point": zero_point, "lm_head": "wint8",
        "is_quantized": True, "forms": {"wint4": form.name, "wint8": INT8.name},
    }  # fmt: skip
    folder = folder_of(tmp_path / "out", stored, quantization)
    same_model(folder, folder_of(tmp_path / "meant", decoded(stored, zero_point), None))


def test_a_public_checkpoint(tmp_path: Path) -> None:
    """AutoGPTQ's, matrix by matrix."""
    grid = Grid(-8, 7, GROUP)
    stored, meant = {}, {}
    for name, array in load_file(EMBEDDED / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if not layer.endswith("_proj"):
            stored[name], meant[name] = array, array.astype(np.float32)
            continue
        codes = rounded(array, grid)
        meant[name] = codes.weight(GROUP)
        nibbles = (codes.code.T.astype(np.int64) + 8).reshape(-1, 8, len(array))
        words = (nibbles << (4 * np.arange(8))[:, None]).sum(1).astype(np.uint32).view(np.int32)
        zeros = np.full((array.shape[1] // GROUP, len(array) // 8), 0x77777777, np.int32)
        groups = np.arange(array.shape[1], dtype=np.int32) // GROUP
        stored |= {f"{layer}.qweight": words, f"{layer}.qzeros": zeros, f"{layer}.g_idx": groups}
        stored[f"{layer}.scales"] = codes.scale.T
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
    folder = folder_of(tmp_path / "out", stored, gptq)
    same_model(folder, folder_of(tmp_path / "meant", meant, None))
