"""Mixtures of experts in stacks of panels, as `fd quantize` writes them on a CPU, run on the GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fd_cuda")
from safetensors.numpy import save_file

from fd_core.api import dtype as dt
from fd_core.api.quant import Grid
from fd_core.host.session import open_session
from fd_core.quantization.codes import Codes, rounded_codes
from fd_core.quantization.formats import FORMATS
from fd_core.quantization.panels import Panels
from fd_core.quantization.stored_codes import nearest_steps, panels_for
from fd_core.testkit.harness import Harness, build
from tests.cuda.gpu import gpu_session

pytestmark = pytest.mark.device("cuda")
Array = np.ndarray[Any, Any]
HIDDEN, INNER, EXPERTS = 128, 192, 4
#: Every token goes through all experts, so that no tie is broken the other way by a rounding.
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16",
    "vocab_size": 97, "hidden_size": HIDDEN, "intermediate_size": INNER, "moe_intermediate_size": INNER,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
    "num_experts": EXPERTS, "num_experts_per_tok": EXPERTS, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "hidden_act": "silu", "tie_word_embeddings": False, "eos_token_id": 2,
}  # fmt: skip
PROMPT = tuple(int(i) for i in np.random.default_rng(7).integers(3, 97, 29))
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    values = RNG.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)
    return values.astype(dt.bfloat16.numpy()).astype(np.float32)


def codes_of(weight: Array, grid: Grid) -> Codes:
    steps = nearest_steps(weight, grid)
    return rounded_codes(weight, steps["scale"], steps.get("zero"), grid)


def model(grid: Grid) -> tuple[dict[str, Array], dict[str, Array]]:
    """The tensors of a converted folder, and the plain ones that they mean."""
    form: Panels = panels_for(grid)
    stored = {
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        "model.embed_tokens.weight": normal(97, HIDDEN) * 8,
        "lm_head.weight": normal(97, HIDDEN),
    }
    meant: dict[str, Array] = {}
    for i in range(2):
        at = f"model.layers.{i}"
        for name, rows in (("q", 128), ("k", 64), ("v", 64), ("o", 128)):
            stored[f"{at}.self_attn.{name}_proj.weight"] = normal(rows, HIDDEN)
        stored[f"{at}.mlp.gate.weight"] = normal(EXPERTS, HIDDEN)
        for name in ("input_layernorm", "post_attention_layernorm"):
            stored[f"{at}.{name}.weight"] = np.ones(HIDDEN, np.float32)
        for name in ("q_norm", "k_norm"):
            stored[f"{at}.self_attn.{name}.weight"] = np.ones(64, np.float32)
        for matrix, rows, depth in (("gate_up_proj", 2 * INNER, HIDDEN), ("down_proj", HIDDEN, INNER)):
            each = [codes_of(normal(rows, depth), grid) for _ in range(EXPERTS)]
            for part in form.tensors(rows, depth):
                stack = np.stack([form.encode(one)[part] for one in each])
                stored[f"{at}.mlp.experts.{matrix}.{part}"] = stack
            for e, one in enumerate(each):
                weight, prefix = one.weight(grid.group), f"{at}.mlp.experts.{e}"
                names = {"gate_proj": weight[:INNER], "up_proj": weight[INNER:]}
                names = names if matrix == "gate_up_proj" else {"down_proj": weight}
                meant |= {f"{prefix}.{name}.weight": array for name, array in names.items()}
    return stored, meant | {n: a for n, a in stored.items() if n.endswith(".weight")}


def folder_of(folder: Path, tensors: Mapping[str, Array], **more: Any) -> Path:
    folder.mkdir()
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, **more}))
    return folder


@pytest.mark.parametrize(
    ("method", "grid"),
    [
        ("wint8", Grid(-128, 127, 0, by_effect=False)),
        ("wint4", Grid(-8, 7, 64)),
        ("wint4", Grid(-8, 7, 128)),
        ("wint4", Grid(-8, 7, 0)),
    ],
)
def test_stacks_of_panels(method: str, grid: Grid, tmp_path: Path) -> None:
    session = gpu_session("pack_int4_given", "moe_expert_int4", "moe_expert_int8", "linear_int8_fused")
    stored, meant = model(grid)
    form = panels_for(grid)
    assert FORMATS[form.name] is type(form)
    quantization = {
        "quantization": method, "group_size": grid.group or -1, "skip": ["self_attn"], "lm_head": "none",
        "layers": {"*.self_attn.*": "none"}, "moe_quant_type": method, "is_quantized": True,
        "forms": {method: form.name},
    }  # fmt: skip
    folder = folder_of(tmp_path / "stored", stored, quantization_config=quantization)
    plain = folder_of(tmp_path / "meant", meant, torch_dtype="float32")
    got = np.asarray(Harness(build(folder, session)).logits("prompt", PROMPT), np.float32)
    want = np.asarray(Harness(build(plain, open_session("reference"))).logits("prompt", PROMPT))
    # bfloat16 activations, two layers deep: some roundings of 2^-9 each (the kit's bound for such models).
    assert np.abs(got - want).max() <= 5e-2 * np.abs(want).max()
