"""Checkpoints of other projects, and converted ones on methods that pack codes anew: their descriptions,
and that a model of them is the one whose plain weights are what the codes mean."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from integer import make
from safetensors.numpy import load_file, save_file
from test_code_formats import WRITERS, pack_quantized

from fd_core.api.dtype import FLOATS
from fd_core.api.quant import Grid, LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.cli.main import main
from fd_core.engine.build import EMBEDDED, build_model
from fd_core.engine.config import EngineConfig
from fd_core.host.session import Session, open_session
from fd_core.llm import LLM, SamplingParams
from fd_core.quantization.codes import Codes, rounded_codes
from fd_core.quantization.config import QuantError, parse_quantization
from fd_core.quantization.formats import FORMATS
from fd_core.quantization.stored_codes import nearest_steps

Array = np.ndarray[Any, Any]
KNOWN = ("none", "wint8", "wint4", "w8a8", "w4a8", "wfp8afp8")
#: Layers whose weights are replaced, by the last part of their name.
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def compressed(weights: Mapping[str, Any], form: str = "pack-quantized", **group: Any) -> dict[str, Any]:
    """config.json of llm-compressor for int weights."""
    side = {"type": "int", "dynamic": False, "symmetric": True, "actorder": None, **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": side, **group}},
        "ignore": ["lm_head"],
    }


def w4a16(**more: Any) -> dict[str, Any]:
    return compressed({"num_bits": 4, "strategy": "group", "group_size": 128, **more})


TOKENS = {"type": "int", "num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}
W8A16 = compressed({"num_bits": 8, "strategy": "channel"})
W8A8 = compressed({"num_bits": 8, "strategy": "channel"}, "int-quantized", input_activations=TOKENS)
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


# -- descriptions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "name", "form", "group", "zero_point", "head"),
    [
        (w4a16(), "wint4", "pack-quantized", 128, False, "none"),
        (w4a16(symmetric=False, actorder="static"), "wint4", "pack-quantized", 128, True, "none"),
        (
            {**w4a16(), "sparsity_config": {"format": "dense"}},
            "wint4",
            "pack-quantized",
            128,
            False,
            "none",
        ),
        (w4a16(strategy="channel", group_size=None), "wint4", "pack-quantized", -1, False, "none"),
        ({**w4a16(), "ignore": []}, "wint4", "pack-quantized", 128, False, "wint4"),
        (W8A16, "wint8", "pack-quantized", None, None, "none"),
        (W8A8, "w8a8", "int-quantized", None, None, "none"),
        (AWQ, "wint4", "awq", 128, True, "none"),
        (GPTQ, "wint4", "gptq", 128, False, "none"),
        ({**GPTQ, "sym": False, "checkpoint_format": "gptq_v2"}, "wint4", "gptq_v2", 128, True, "none"),
        ({**GPTQ, "lm_head": True}, "wint4", "gptq", 128, False, "wint4"),
    ],
)
def test_descriptions(
    raw: dict[str, Any], name: str, form: str, group: int | None, zero_point: bool | None, head: str
) -> None:
    parsed = parse_quantization(raw, "", KNOWN)
    assert (parsed.name, parsed.from_checkpoint) == (name, True)
    assert parsed.options["forms"] == {name: form}
    assert (parsed.options.get("group_size"), parsed.options.get("zero_point")) == (group, zero_point)
    assert parsed.name_for("lm_head") == head
    assert parsed.name_for_experts("model.layers.0.mlp.experts") == name
    assert parsed.name_for_table("model.embed_tokens") == "none"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (w4a16(actorder="group"), "weights.actorder: want None | 'static' | 'weight', have 'group'"),
        (w4a16(strategy="tensor"), "weights.strategy: want 'group' | 'channel', have 'tensor'"),
        (w4a16(num_bits=3), "weights.num_bits: want 4, have 3"),
        (
            compressed({"num_bits": 8, "strategy": "group", "group_size": 128}),
            "want 'channel', have 'group'",
        ),
        ({**w4a16(), "format": "marlin-24"}, "format: want 'pack-quantized', have 'marlin-24'"),
        (
            {**w4a16(), "transform_config": {"config_groups": {"R1": {}}}},
            "transform_config: want none, have",
        ),
        ({**w4a16(), "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config.format: want"),
        ({**AWQ, "bits": 3}, "awq: bits: want 4, have 3"),
        ({**AWQ, "version": "gemv"}, "awq: version: want 'gemm', have 'gemv'"),
        ({**GPTQ, "desc_act": True}, "gptq: desc_act: want False, have True"),
        ({**GPTQ, "bits": 8}, "gptq: bits: want 4, have 8"),
        ({**GPTQ, "dynamic": {"-:.*": {}}}, "gptq: dynamic: want None, have"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "want 'gptq' | 'gptq_v2', have 'marlin'"),
        ({**GPTQ, "is_marlin_format": True}, "gptq: is_marlin_format: want False, have True"),
        ({**GPTQ, "pack_dtype": "int8"}, "gptq: pack_dtype: want 'int32', have 'int8'"),
    ],
)
def test_what_is_not_read_is_refused(raw: dict[str, Any], why: str) -> None:
    with pytest.raises(QuantError) as no:
        parse_quantization(raw, "", KNOWN)
    assert why in str(no.value)
    assert "; fix: take a checkpoint of" in str(no.value)


def test_activations_are_the_users_choice_where_the_checkpoint_leaves_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "fd"):
        parsed = parse_quantization(AWQ, "w4a8", KNOWN)
        assert (parsed.name, parsed.options["forms"]) == ("w4a8", {"w4a8": "awq"})
        assert not caplog.records
        assert parse_quantization(AWQ, "w4a8", ("none", "wint4", "w4a8"[:0])).name == "wint4"
    assert "quantization 'w4a8' is ignored: the checkpoint is 'wint4'" in caplog.text


def test_a_method_that_the_device_lacks_is_run_by_that_of_the_same_codes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    raw = {
        "quantization": "w4a8", "is_quantized": True, "lm_head": "w8a8", "layers": {"down_proj": "w4a8"},
        "forms": {"w4a8": "int4-panels-1", "w8a8": "int8-panels-1"},
    }  # fmt: skip
    with caplog.at_level(logging.WARNING, "fd"):
        parsed = parse_quantization(raw, "", ("none", "wint4", "wint8", "w8a8"))
    assert "this device runs w4a8 as wint4: the same weights, 16-bit activations" in caplog.text
    assert (parsed.name, parsed.head) == ("wint4", "w8a8")
    assert parsed.name_for("model.layers.0.mlp.down_proj") == "wint4"
    assert parsed.options["forms"] == {"wint4": "int4-panels-1", "w8a8": "int8-panels-1"}
    assert parse_quantization(raw, "", KNOWN).name == "w4a8"


# -- models ------------------------------------------------------------------------------------------


def config_of(quantization: Mapping[str, Any] | None) -> str:
    raw = json.loads((EMBEDDED / "config.json").read_text())
    raw.pop("quantization_config", None)
    if quantization is not None:
        raw["quantization_config"] = dict(quantization)
    return json.dumps({**raw, "torch_dtype": "float32"})


def folder_of(folder: Path, tensors: Mapping[str, Array], quantization: Mapping[str, Any] | None) -> Path:
    """The embedded model with other weights."""
    folder.mkdir()
    for file in EMBEDDED.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            (folder / file.name).symlink_to(file)
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(config_of(quantization))
    return folder


def rounded(weight: Array, grid: Grid) -> Codes:
    steps = nearest_steps(weight.astype(np.float32), grid)
    on_grid = weight.astype(np.float32)
    return rounded_codes(on_grid, steps["scale"], steps.get("zero"), grid)


def converted(grid: Grid, write: Callable[[Codes], dict[str, Array]]) -> tuple[dict[str, Array], ...]:
    """The tensors of the embedded model, layers as `write` stores them, and as what the codes mean."""
    stored: dict[str, Array] = {}
    meant: dict[str, Array] = {}
    for name, array in load_file(EMBEDDED / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if layer.rpartition(".")[2] not in LINEAR:
            stored[name] = meant[name] = array.astype(np.float32)
            continue
        codes = rounded(array, grid)
        stored |= {f"{layer}.{part}": one for part, one in write(codes).items()}
        meant[name] = codes.weight(grid.group)
    return stored, meant


def logprobs(folder: Path, quantization: str = "") -> tuple[list[int], Array]:
    llm = LLM(str(folder), quantization=quantization, platform="cpu")
    params = SamplingParams(max_tokens=8, temperature=0.0, logprobs=1, ignore_eos=True)
    (output,) = llm.generate(["The project is"], params)[0].outputs
    return list(output.token_ids), np.array([p.logprob for p in output.logprobs or []])


@pytest.mark.parametrize(
    ("name", "raw", "grid"),
    [
        ("pack-quantized", w4a16(group_size=64), Grid(-8, 7, 64)),
        ("pack-quantized", w4a16(symmetric=False), Grid(-8, 7, 128, (-8, 7))),
        ("pack-quantized", w4a16(strategy="channel"), Grid(-8, 7, 0)),
        ("awq", AWQ, Grid(-8, 7, 128, (-8, 7))),
        ("gptq", GPTQ, Grid(-8, 7, 128)),
        ("gptq_v2", {**GPTQ, "sym": False, "checkpoint_format": "gptq_v2"}, Grid(-8, 7, 128, (-8, 7))),
    ],
)
def test_a_public_checkpoint_is_the_model_of_its_codes(
    name: str, raw: dict[str, Any], grid: Grid, tmp_path: Path
) -> None:
    """Both in float32, over the same numbers: only the order of sums differs (256 to 768 terms)."""
    make("wint4")
    stored, meant = converted(grid, WRITERS[name])
    want = logprobs(folder_of(tmp_path / "meant", meant, None))
    got = logprobs(folder_of(tmp_path / "stored", stored, raw))
    assert got[0] == want[0]
    np.testing.assert_allclose(got[1], want[1], atol=1e-3)


@pytest.mark.parametrize("raw", [W8A16, W8A8], ids=["W8A16", "W8A8"])
def test_int8_checkpoints(raw: dict[str, Any], tmp_path: Path) -> None:
    make("wint8")
    grid = Grid(-128, 127, 0, by_effect=False)

    def plain(codes: Codes) -> dict[str, Array]:
        return {"weight": codes.code, "weight_scale": codes.scale}

    stored, meant = converted(grid, plain if raw is W8A8 else lambda codes: pack_quantized(codes, 8))
    want = logprobs(folder_of(tmp_path / "meant", meant, None))
    got = logprobs(folder_of(tmp_path / "stored", stored, raw))
    assert got[0] == want[0]
    # Activations of W8A8 are rounded to 127 steps, which moves logits of some 5 by a few hundredths.
    np.testing.assert_allclose(got[1], want[1], atol=0.2 if raw is W8A8 else 1e-3)


def test_int8_activations_on_a_public_int4_checkpoint(tmp_path: Path) -> None:
    make("w4a8")
    stored, _ = converted(Grid(-8, 7, 128), WRITERS["gptq"])
    folder = folder_of(tmp_path / "stored", stored, GPTQ)
    np.testing.assert_allclose(logprobs(folder, "w4a8")[1], logprobs(folder)[1], atol=0.3)


def test_a_group_that_the_method_does_not_have_is_refused(tmp_path: Path) -> None:
    make("wint4")
    stored, _ = converted(Grid(-8, 7, 64), WRITERS["gptq"])
    folder = folder_of(tmp_path / "stored", stored, {**GPTQ, "group_size": 16})
    with pytest.raises(QuantError, match=r"want group_size 32 \| 64 \| 128 \| -1, have 16"):
        build_model(EngineConfig(model=str(folder)), open_session("cpu"))


# -- methods with a grid alone -----------------------------------------------------------------------


class GridOnly(QuantMethod):
    """Keeps what it is given and runs it as the `linear` op does: no form, no packing."""

    given: ClassVar[list[tuple[str, set[str]]]] = []
    low: ClassVar[int] = -8

    @classmethod
    def supports(cls, spec: LinearSpec, device: Any) -> Any:
        from fd_core.api.verdict import YES

        return YES if spec.dtype in FLOATS else None

    def grid(self) -> Grid:
        zeros = (-128, 127) if self.config.get("zero_point") else None
        return Grid(-8, 7, self.config.get("group_size", 64), zeros)

    def create_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        return {"weight": TensorSpec((spec.out_features, spec.in_features), spec.dtype)}

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        self.given.append((spec.prefix, set(weights)))
        return self.platform.from_host(weights["weight"].numpy().astype(np.float32))

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        self.ops.linear(x, packed, bias, out)


class Grid4(GridOnly):
    name: ClassVar[str] = "wint4"


class Grid8(GridOnly):
    name: ClassVar[str] = "wint8"

    def grid(self) -> Grid:
        return Grid(-128, 127, 0, by_effect=False)


def grid_session() -> Session:
    """The CPU, whose integer methods have grids alone."""
    make("wint4")
    session = open_session("cpu")
    return replace(session, quant_methods={**session.quant_methods, "wint4": Grid4, "wint8": Grid8})


def logits(model: Any) -> Array:
    return np.concatenate([np.ravel(layer._packed.numpy()) for layer in linear_layers(model)])


def linear_layers(model: Any) -> list[Any]:
    return [layer for layer in model.layers_with_weights() if getattr(layer, "_packed", None) is not None]


@pytest.mark.parametrize("options", [(), ("--zero-point",)])
def test_a_converted_checkpoint_serves_devices_with_other_layouts(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer gets exactly what the panels mean, with its scales."""
    session = grid_session()
    words = ["--method", "wint4", "--calibration", "none", "--lm-head", "none", *options]
    assert main(["quantize", str(EMBEDDED), str(tmp_path / "out"), *words]) == 0
    config = EngineConfig(model=str(tmp_path / "out"))
    GridOnly.given.clear()
    theirs = build_model(config, session)
    names = {"weight", "scale"} | ({"zero"} if options else set())
    assert len(GridOnly.given) == 4 * 7
    assert all(found == names for _, found in GridOnly.given)
    panels = FORMATS["int4-zero-panels-1" if options else "int4-panels-1"](
        Grid(-8, 7, 64, (-128, 127) if options else None)
    )
    for ours, other in zip(
        linear_layers(build_model(config, open_session("cpu"))), linear_layers(theirs), strict=True
    ):
        if ours.method.name == "wint4":
            spec = ours.spec
            codes = panels.decode({"qweight": ours._packed.numpy()}, spec.out_features, spec.in_features)
            np.testing.assert_array_equal(other._packed.numpy(), codes.weight(64))


def test_a_method_with_a_grid_alone_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is one that the CPU uses in place; its error is that of the CPU's own conversion."""
    session = grid_session()
    for place in ("fd_core.quantization.convert", "fd_core.host.session"):
        monkeypatch.setattr(f"{place}.open_session", lambda *_, **__: session)
    words = ["--method", "wint4", "--calibration", "none", "--lm-head", "wint8"]
    assert main(["quantize", str(EMBEDDED), str(tmp_path / "theirs"), *words]) == 0
    monkeypatch.undo()
    assert main(["quantize", str(EMBEDDED), str(tmp_path / "ours"), *words]) == 0
    raw = json.loads((tmp_path / "theirs" / "config.json").read_text())["quantization_config"]
    assert raw["forms"] == {"wint4": "int4-panels-1", "wint8": "int8-panels-1"}
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    plain = load_file(EMBEDDED / "model.safetensors")
    name = "model.layers.3.mlp.down_proj"
    form = FORMATS["int4-panels-1"](Grid(-8, 7, 64))
    losses = []
    for one in (theirs, ours):
        codes = form.decode({"qweight": one[f"{name}.qweight"]}, 256, 768)
        losses.append(np.square(codes.weight(64) - plain[f"{name}.weight"].astype(np.float32)).sum())
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert "model.embed_tokens.weight" in theirs, "this device has no lookups"
    config = EngineConfig(model=str(tmp_path / "theirs"))
    build_model(config, session)


def test_a_method_that_nobody_can_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = grid_session()
    monkeypatch.setattr(Grid4, "grid", lambda self: None)
    monkeypatch.setattr("fd_core.quantization.convert.open_session", lambda *_: session)
    words = ["--method", "wint4", "--calibration", "none"]
    assert main(["quantize", str(EMBEDDED), str(tmp_path / "out"), *words]) == 1
    assert not (tmp_path / "out").exists()
