"""Mixtures of experts whose checkpoints hold codes: expert by expert as other projects store them, and in
stacks for methods that pack anew. Each must be the model whose plain weights are what the codes mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from integer import make
from safetensors.numpy import load_file, save_file
from test_code_formats import WRITERS

from fd_core.api.quant import ExpertMethod, ExpertSpec, Grid
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.host.errors import UnsupportedOpError
from fd_core.host.session import Session, open_session
from fd_core.layers.moe import Experts
from fd_core.quantization.codes import rounded_codes
from fd_core.quantization.config import QuantConfig
from fd_core.quantization.convert import Job, convert
from fd_core.quantization.formats import FORMATS
from fd_core.quantization.panels import Panels
from fd_core.quantization.stored_codes import nearest_steps
from fd_core.quantization.unquantized import PlainExperts
from fd_core.testkit.harness import Harness, build

Array = np.ndarray[Any, Any]
GROUP, HIDDEN, INNER, EXPERTS = 32, 64, 96, 4
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "float32",
    "vocab_size": 97, "hidden_size": HIDDEN, "intermediate_size": INNER, "moe_intermediate_size": INNER,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "num_experts": EXPERTS, "num_experts_per_tok": 2, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "eos_token_id": 2,
}  # fmt: skip
PROMPT = tuple(int(i) for i in np.random.default_rng(7).integers(3, 97, 29))


def plain_tensors() -> dict[str, Array]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        values = rng.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)

    ones = {"model.norm.weight": np.ones(HIDDEN, np.float32)}
    found = {"model.embed_tokens.weight": normal(97, HIDDEN) * 8, "lm_head.weight": normal(97, HIDDEN)}
    for i in range(2):
        at = f"model.layers.{i}"
        for name, rows in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
            found[f"{at}.self_attn.{name}_proj.weight"] = normal(rows, HIDDEN)
        found[f"{at}.mlp.gate.weight"] = normal(EXPERTS, HIDDEN)
        for e in range(EXPERTS):
            for name, shape in (
                ("gate", (INNER, HIDDEN)),
                ("up", (INNER, HIDDEN)),
                ("down", (HIDDEN, INNER)),
            ):
                found[f"{at}.mlp.experts.{e}.{name}_proj.weight"] = normal(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            ones[f"{at}.{name}.weight"] = np.ones(HIDDEN, np.float32)
        for name in ("q_norm", "k_norm"):
            ones[f"{at}.self_attn.{name}.weight"] = np.ones(16, np.float32)
    return found | ones


def folder_of(folder: Path, tensors: Mapping[str, Array], quantization: Mapping[str, Any] | None) -> Path:
    folder.mkdir()
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    more = {"quantization_config": dict(quantization)} if quantization else {}
    (folder / "config.json").write_text(json.dumps({**CONFIG, **more}))
    return folder


def coded(grid: Grid) -> tuple[dict[str, Any], dict[str, Array]]:
    """The codes of each layer by name, and the plain tensors that they mean."""
    codes, meant = {}, {}
    for name, array in plain_tensors().items():
        layer = name.removesuffix(".weight")
        if not layer.endswith("_proj"):
            meant[name] = array
            continue
        steps = nearest_steps(array, grid)
        codes[layer] = rounded_codes(array, steps["scale"], steps.get("zero"), grid)
        meant[name] = codes[layer].weight(grid.group)
    return codes, meant


def logits(folder: Path, session: Session) -> Array:
    return np.asarray(Harness(build(folder, session, cache="float32")).logits("prompt", PROMPT))


def cpu() -> Session:
    make("wint4")
    return open_session("cpu")


def same(got: Array, want: Array) -> None:
    """Both over the same numbers in float32, sums in another order; no token is near a tie of experts."""
    assert np.abs(got - want).max() <= 1e-4 * want.std(), np.abs(got - want).max() / want.std()


@pytest.mark.parametrize(
    ("name", "raw", "zeros"),
    [
        ("awq", {"quant_method": "awq", "bits": 4, "group_size": GROUP}, True),
        ("gptq", {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True}, False),
        (
            "pack-quantized",
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {
                            "type": "int", "num_bits": 4, "strategy": "group", "group_size": GROUP,
                            "symmetric": False,
                        },
                    }
                },
                "ignore": ["lm_head", "re:.*mlp.gate$"],
            },
            True,
        ),
    ],
)  # fmt: skip
def test_expert_by_expert(name: str, raw: dict[str, Any], zeros: bool, tmp_path: Path) -> None:
    grid = Grid(-8, 7, GROUP, (-8, 7) if zeros else None)
    codes, meant = coded(grid)
    stored = {n: a for n, a in meant.items() if n.removesuffix(".weight") not in codes}
    for layer, one in codes.items():
        stored |= {f"{layer}.{part}": array for part, array in WRITERS[name](one).items()}
    session = cpu()
    got = logits(folder_of(tmp_path / "stored", stored, raw), session)
    same(got, logits(folder_of(tmp_path / "meant", meant, None), session))


# -- stacks ------------------------------------------------------------------------------------------


def panels_folder(folder: Path, zeros: bool) -> tuple[Path, dict[str, Array]]:
    """A converted folder, and what its plain tensors are."""
    grid = Grid(-8, 7, GROUP, (-128, 127) if zeros else None)
    form = FORMATS["int4-zero-panels-1" if zeros else "int4-panels-1"](grid)
    assert isinstance(form, Panels)
    codes, meant = coded(grid)
    stored = {n: a for n, a in meant.items() if n.removesuffix(".weight") not in codes}
    for i in range(2):
        at = f"model.layers.{i}"
        dense = {"q": ("q", "k", "v"), "o": ("o",)}
        for first, names in dense.items():
            parts = [codes[f"{at}.self_attn.{n}_proj"] for n in names]
            stored[f"{at}.self_attn.{first}_proj.qweight"] = form.encode(joined(parts))["qweight"]
        experts = [f"{at}.mlp.experts.{e}" for e in range(EXPERTS)]
        for matrix, names in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
            each = [joined([codes[f"{one}.{n}_proj"] for n in names]) for one in experts]
            stack = np.stack([form.encode(one)["qweight"] for one in each])
            stored[f"{at}.mlp.experts.{matrix}.qweight"] = stack
    quantization = {
        "quantization": "wint4", "group_size": GROUP, "zero_point": zeros, "lm_head": "none",
        "moe_quant_type": "wint4", "is_quantized": True, "forms": {"wint4": form.name},
    }  # fmt: skip
    return folder_of(folder, stored, quantization), meant


def joined(parts: list[Any]) -> Any:
    zero = None if parts[0].zero is None else np.concatenate([p.zero for p in parts])
    code, scale = (np.concatenate([getattr(p, name) for p in parts]) for name in ("code", "scale"))
    return replace(parts[0], code=code, scale=scale, zero=zero)


class Given(PlainExperts):
    """Plain experts that note what comes with them."""

    names: set[str]

    def packed_weights(self, spec: ExpertSpec) -> dict[str, TensorSpec]:
        kind = spec.activation
        return {n: TensorSpec(one.shape, kind) for n, one in super().packed_weights(spec).items()}

    def pack(
        self, spec: ExpertSpec, expert: int, weights: Mapping[str, Tensor], packed: Mapping[str, Tensor]
    ) -> None:
        self.method.config.setdefault("seen", set()).update(weights)
        super().pack(spec, expert, {n: w for n, w in weights.items() if "." not in n}, packed)


def grid_session(expert_method: type[ExpertMethod] | None) -> Session:
    """The CPU with methods that have grids and no form, so that all is packed anew."""
    from fd_cpu.quant_integer import Int4Linear

    session = cpu()

    class Anew(Int4Linear):
        form = ""  # type: ignore[assignment]

        def experts(self) -> Any:
            return expert_method(self) if expert_method else None

    return replace(session, quant_methods={**session.quant_methods, "wint4": Anew})


@pytest.mark.parametrize("zeros", [False, True])
def test_stacks_are_packed_anew(zeros: bool, tmp_path: Path) -> None:
    folder, meant = panels_folder(tmp_path / "stored", zeros)
    want = logits(folder_of(tmp_path / "meant", meant, None), cpu())
    same(logits(folder, cpu()), want)
    session = grid_session(Given)
    model = build(folder, session, cache="float32")
    same(np.asarray(Harness(model).logits("prompt", PROMPT)), want)
    (layer, *_) = [one for one in model.layers_with_weights() if isinstance(one, Experts)]
    names = {f"{m}_proj{part}" for m in ("gate_up", "down") for part in ("", ".scale")}
    names |= {f"{m}_proj.zero" for m in ("gate_up", "down")} if zeros else set()
    assert layer.method.method.config["seen"] == names


def test_a_method_with_a_grid_alone_converts_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is one that the CPU uses in place; its experts are near the plain ones."""
    plain = folder_of(tmp_path / "plain", plain_tensors(), None)
    monkeypatch.setattr("fd_core.quantization.convert.open_session", lambda *_: grid_session(Given))
    quant = QuantConfig("wint4", {"group_size": GROUP}, head="none")
    convert(Job(plain, tmp_path / "out", quant, progress=False))
    raw = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (raw["moe_quant_type"], raw["forms"]) == ("wint4", {"wint4": "int4-panels-1"})
    model = build(tmp_path / "out", cpu(), cache="float32")
    (layer, *_) = [one for one in model.layers_with_weights() if isinstance(one, Experts)]
    assert layer.method.stored
    stack = load_file(tmp_path / "out" / "model.safetensors")[
        "model.layers.1.mlp.experts.down_proj.qweight"
    ]
    codes = FORMATS["int4-panels-1"](Grid(-8, 7, GROUP)).decode({"qweight": stack[3]}, HIDDEN, INNER)
    weight = plain_tensors()["model.layers.1.mlp.experts.3.down_proj.weight"]
    assert np.square(codes.weight(GROUP) - weight).sum() < 0.01 * np.square(weight).sum()


def test_a_device_without_experts_says_so(tmp_path: Path) -> None:
    folder, _ = panels_folder(tmp_path / "stored", False)
    with pytest.raises(UnsupportedOpError, match="want expert weights, have dense layers only"):
        build(folder, grid_session(None), cache="float32")
