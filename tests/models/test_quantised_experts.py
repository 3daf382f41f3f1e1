"""Qwen3-MoE with integer weights, experts included: against transformers on what the codes stand for, alone
and in company, converted and used in place."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Harness, Parts, build, cpu_parts, oracle_parts
from tiny_models import FAMILIES, VOCAB, make, reference_logits, save

from fd_core.api import dtype as dt
from fd_core.api.quant import LinearSpec
from fd_core.api.tensor import from_numpy
from fd_core.cli.main import main
from fd_core.host.errors import UnsupportedOpError
from fd_core.layers.moe import Expert, Experts
from fd_core.loader.tensor_file import TensorFile

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")
METHODS = ["wint8", "w8a8", "wint4", "w4a8"]
PROMPT = [int(t) for t in np.random.default_rng(7).integers(0, VOCAB, 41)]
OTHER = [int(t) for t in np.random.default_rng(8).integers(0, VOCAB, 23)]


@pytest.fixture(scope="module")
def parts() -> Parts:
    found = cpu_parts()
    from fd_cpu.quant_integer import METHODS as INTEGERS

    return replace(found, quant_methods={**found.quant_methods, **{m.name: m for m in INTEGERS}})


@pytest.fixture(scope="module")
def reference() -> Any:
    return make("qwen3_moe", "bfloat16")


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(reference, tmp_path_factory.mktemp("moe"), "bfloat16")


def with_config(folder: Path, out: Path, quantization: dict[str, Any]) -> Path:
    """The same checkpoint, to be quantised while it loads."""
    out.mkdir()
    for file in folder.iterdir():
        if file.name != "config.json":
            (out / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantization
    (out / "config.json").write_text(json.dumps(config))
    return out


def rounded(weight: Any, method: Any) -> Any:
    """The matrix [out, in] that a method's codes stand for, row by row as it looks them up."""
    array = weight.detach().numpy().astype(dt.bfloat16.numpy())
    spec = LinearSpec(array.shape[1], array.shape[0], False, dt.bfloat16, dt.float32)
    packed = method.process_weights(spec, {"weight": from_numpy(array)})
    out = np.empty(array.shape, np.float32)
    method.lookup(from_numpy(np.arange(len(array), dtype=np.int32)), packed, from_numpy(out))
    return torch.from_numpy(out)


def dequantised(model: Any, parts: Parts, name: str, experts: str = "") -> Any:
    """A copy whose linear layers and table have the rounded weights; routers and norms are left alone."""
    make_method = lambda n: parts.quant_methods[n](parts.device, parts.platform, None)  # noqa: E731
    dense, expert = make_method(name), make_method(experts or name)
    head = make_method({"wint4": "wint8", "w4a8": "w8a8"}.get(name, name))
    model = copy.deepcopy(model)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim == 3 and experts != "none":
                for matrix in weight:
                    matrix.copy_(rounded(matrix, expert))
            elif weight.ndim == 2 and key in ("lm_head.weight", "model.embed_tokens.weight"):
                weight.copy_(rounded(weight, head))
            elif weight.ndim == 2 and not key.endswith("mlp.gate.weight"):
                weight.copy_(rounded(weight, dense))
    return model


def experts_of(model: Any) -> list[Experts]:
    layers = model.layers_with_weights()
    return [*{id(e): e for e in (getattr(layer, "experts", layer) for layer in layers)
              if isinstance(e, Experts)}.values()]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "experts"), [("wint8", ""), ("wint4", ""), ("wint8", "wint4"), ("wint4", "none")]
)
def test_logits_equal_transformers_on_dequantised_weights(
    name: str, experts: str, folder: Path, reference: Any, parts: Parts, tmp_path: Path
) -> None:
    """Float activations: float32 sums in another order, over three layers. The router sees them, and a
    token close to a tie may go elsewhere; none of these is."""
    config = {"quantization": name, **({"moe_quant_type": experts} if experts else {})}
    model = build(with_config(folder, tmp_path / "m", config), parts, cache="float32")
    assert {e.method.method.name for e in experts_of(model)} == {experts or name}
    got = Harness(model).logits("prompt", PROMPT)
    want = reference_logits(dequantised(reference, parts, name, experts), PROMPT)
    plain = reference_logits(reference, PROMPT)
    error = np.abs(got - want).max() / want.std()
    assert error <= 1e-4, error
    assert np.abs(got - plain).max() / want.std() > 1e-2, "rounding must show, or nothing was tested"


@pytest.fixture(scope="module")
def undecided() -> Any:
    """Every token goes through all experts: no tie is broken the other way by a rounding."""
    stem, config = FAMILIES["qwen3_moe"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "all", (stem, {**config, "num_experts_per_tok": config["num_experts"]}))
        return make("all", "bfloat16")


@pytest.mark.parametrize("name", ["w8a8", "w4a8"])
def test_int8_activations_stay_close(name: str, undecided: Any, parts: Parts, tmp_path: Path) -> None:
    """A product's inputs are off by at most 1/254 of a group's largest, evenly: some 0.5 % of a typical sum
    (the largest of 64 is 2.5 times their deviation), and a dozen products in a row add up as squares do."""
    folder = save(undecided, tmp_path / "plain", "bfloat16")
    model = build(with_config(folder, tmp_path / "m", {"quantization": name}), parts, cache="float32")
    got = Harness(model).logits("prompt", PROMPT)
    want = reference_logits(dequantised(undecided, parts, name), PROMPT)
    error = np.sqrt(np.square(got - want).mean()) / want.std()
    assert 1e-4 <= error <= 0.03, error


@pytest.mark.parametrize("name", ["none", *METHODS])
def test_a_sequence_does_not_depend_on_chunks_or_neighbours(
    name: str, folder: Path, parts: Parts, tmp_path: Path
) -> None:
    harness = Harness(build(with_config(folder, tmp_path / "m", {"quantization": name}), parts))
    whole = harness.logits("whole", PROMPT)
    chunked = harness.logits("chunked", PROMPT, chunks=[7, 1, 16, 5])
    np.testing.assert_array_equal(chunked, whole)
    harness.step([("mixed", PROMPT[:9]), ("other", OTHER)])
    tail = harness.step([("other", [1]), ("mixed", PROMPT[9:40]), ("third", OTHER)])[1]
    np.testing.assert_array_equal(tail, whole[9:40])
    last = harness.step([("other", [2]), ("third", [3]), ("mixed", PROMPT[40:])])[2]
    np.testing.assert_array_equal(last, whole[40:])


def convert(folder: Path, out: Path, *options: str) -> Path:
    assert main(["quantize", str(folder), str(out), *options, "--calibration", "none"]) == 0
    return out


@pytest.mark.parametrize(
    ("options", "config"),
    [
        (["--method", "w4a8"], {"quantization": "w4a8"}),
        (["--method", "wint8"], {"quantization": "wint8"}),
        (["--method", "wint4", "--experts", "w8a8"], {"quantization": "wint4", "moe_quant_type": "w8a8"}),
        (["--method", "w8a8", "--experts", "none"], {"quantization": "w8a8", "moe_quant_type": "none"}),
        (
            ["--method", "w8a8", "--layer", "model.layers.0.mlp.experts=wint4", "--skip", "model.layers.2"],
            {"quantization": "w8a8", "layers": {"experts": "wint4"}, "skip": ["model.layers.2"]},
        ),
    ],
    ids=lambda value: "-".join(value).replace("--", "") if isinstance(value, list) else "",
)
def test_a_converted_model_is_the_one_made_while_loading(
    options: list[str], config: dict[str, Any], folder: Path, parts: Parts, tmp_path: Path
) -> None:
    done = Harness(build(convert(folder, tmp_path / "out", *options), parts))
    made = Harness(build(with_config(folder, tmp_path / "m", config), parts))
    np.testing.assert_array_equal(done.logits("p", PROMPT), made.logits("p", PROMPT))


def test_stacks_are_used_where_they_lie_in_the_file(folder: Path, parts: Parts, tmp_path: Path) -> None:
    out = convert(folder, tmp_path / "out", "--method", "w4a8")
    entries = TensorFile(out / "model.safetensors").entries
    names = [n for n in entries if ".mlp.experts." in n]
    assert sorted(names) == sorted(
        f"model.layers.{i}.mlp.experts.{m}_proj.qweight" for i in (0, 2) for m in ("gate_up", "down")
    )
    assert "model.layers.0.mlp.gate.weight" in entries, "routers stay as they are"
    found = json.loads((out / "config.json").read_text())["quantization_config"]
    assert (found["moe_quant_type"], found["forms"]["w4a8"]) == ("w4a8", "int4-panels-1")
    for experts in experts_of(build(out, parts)):
        assert experts.parts() == [experts], "one layer, not one for each expert"
        for tensor in (experts._packed or {}).values():
            assert not tensor.storage.owner.flags.writeable, "a copy, not the file's memory"


def test_experts_are_loaded_one_by_one(folder: Path, parts: Parts, tmp_path: Path) -> None:
    """And what the loader holds at a time is one expert's matrices."""
    model = build(with_config(folder, tmp_path / "m", {"quantization": "wint8"}), parts)
    singles = [layer for layer in model.layers_with_weights() if isinstance(layer, Expert)]
    assert [e.index for e in singles] == [*range(6), *range(6)]
    sizes = {name: p.spec.shape for name, p in singles[0].parameters().items()}
    assert sizes == {"gate_up": (48, 64), "down": (64, 24)}


def test_calibration_runs_experts_and_rounds_them_to_the_nearest(
    folder: Path, parts: Parts, tmp_path: Path
) -> None:
    from fd_core.quantization.config import QuantConfig
    from fd_core.quantization.convert import Job
    from fd_core.quantization.convert import convert as run

    windows = [PROMPT, OTHER]
    run(Job(folder, tmp_path / "by-effect", QuantConfig("wint4"), windows, progress=False))
    convert(folder, tmp_path / "nearest", "--method", "wint4", "--lm-head", "wint4")
    one, other = (TensorFile(tmp_path / n / "model.safetensors") for n in ("by-effect", "nearest"))
    assert set(one.entries) == set(other.entries)
    for name in one.entries:
        same = bool((one.read(name) == other.read(name)).all())
        table, experts = "embed_tokens" in name, ".mlp.experts." in name
        dense = name.endswith("qweight") and not (table or experts)
        assert same == (not dense), name


def test_no_text_is_wanted_for_experts_alone(folder: Path, tmp_path: Path) -> None:
    """They are rounded to the nearest whatever the model writes, which takes minutes."""
    from fd_core.quantization.config import QuantConfig
    from fd_core.quantization.convert import Job, rounds_by_effect

    assert rounds_by_effect(Job(folder, tmp_path, QuantConfig("wint4")))
    assert not rounds_by_effect(Job(folder, tmp_path, QuantConfig("wint8", experts="wint4")))


def test_a_device_without_expert_kernels_says_so(folder: Path, parts: Parts, tmp_path: Path) -> None:
    class DenseOnly(parts.quant_methods["wint8"]):  # type: ignore[name-defined,misc]
        def experts(self) -> None:
            return None

    limited = replace(parts, quant_methods={**parts.quant_methods, "wint8": DenseOnly})
    why = r"'wint8': model.layers.0.mlp.experts: .*want expert weights, have dense layers.*moe_quant_type"
    with pytest.raises(UnsupportedOpError, match=why):
        build(with_config(folder, tmp_path / "m", {"quantization": "wint8"}), limited)
    config = {"quantization": "wint8", "moe_quant_type": "none"}
    build(with_config(folder, tmp_path / "n", config), limited)


def test_layouts_of_dense_layers_alone_leave_plain_experts_to_the_op(folder: Path, parts: Parts) -> None:
    class DenseOnly(parts.quant_methods["none"]):  # type: ignore[name-defined,misc]
        def experts(self) -> None:
            return None

    limited = replace(parts, quant_methods={"none": DenseOnly})
    got = Harness(build(folder, limited)).logits("p", PROMPT)
    np.testing.assert_array_equal(got, Harness(build(folder, parts)).logits("p", PROMPT))
    oracle = Harness(build(folder, oracle_parts(), weights="float32", cache="bfloat16")).logits("p", PROMPT)
    np.testing.assert_allclose(got, oracle, atol=2e-3 * np.abs(oracle).max())


MEASURE = """
import sys
from fd_core.cli.main import main
assert main(["quantize", *sys.argv[1:]]) == 0
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def model_of(folder: Path, layers: int, experts: int, hidden: int = 256, inner: int = 512) -> Path:
    """A decoder of some 0.8 MB an expert."""
    from safetensors.numpy import save_file

    kind, tensors = np.dtype(np.float16), {}
    sizes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    for i in range(layers):
        at = f"model.layers.{i}"
        tensors |= {f"{at}.self_attn.{n}_proj.weight": np.ones((hidden, hidden), kind) for n in "qkvo"}
        tensors |= {f"{at}.self_attn.{n}_norm.weight": np.ones(64, kind) for n in "qk"}
        tensors[f"{at}.mlp.gate.weight"] = np.ones((experts, hidden), kind)
        for e in range(experts):
            tensors |= {
                f"{at}.mlp.experts.{e}.{n}.weight": np.full(size, e, kind) for n, size in sizes.items()
            }
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{norm}.weight"] = np.ones(hidden, kind)
    tensors["model.embed_tokens.weight"] = np.zeros((256, hidden), kind)
    tensors["model.norm.weight"] = np.ones(hidden, kind)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "float16",
        "vocab_size": 256, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64, "num_experts": experts,
        "num_experts_per_tok": 2, "moe_intermediate_size": inner, "norm_topk_prob": True,
        "max_position_embeddings": 512, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_of_a_conversion_grows_with_neither_layers_nor_experts(
    parts: Parts, tmp_path: Path
) -> None:
    peaks = []
    for layers, experts in ((2, 4), (4, 24)):
        source = model_of(tmp_path / f"of{layers}", layers, experts)
        words = [str(source), str(tmp_path / f"out{layers}"), "--method", "wint8"]
        done = subprocess.run([sys.executable, "-c", MEASURE, *words], check=True, capture_output=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    # 88 experts more are 69 MB of checkpoint and 35 MB of panels; of these, little may show.
    assert peaks[1] - peaks[0] < 12, peaks
