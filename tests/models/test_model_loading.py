"""Whole models from whole folders: layouts, missing names, random weights, head and table shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Harness, build, oracle_parts
from safetensors.numpy import load_file, save_file
from test_model_logits import PROMPT, assert_logits
from tiny_models import make, reference_logits, save

from fd_core.loader.errors import CheckpointError
from fd_core.loader.folder import SINGLE
from fd_core.models.errors import ConfigError

pytestmark = pytest.mark.reference

PARTS = oracle_parts()


def saved(family: str, folder: Path) -> tuple[Any, Path]:
    reference = make(family)
    return reference, save(reference, folder)


def rewrite(folder: Path, change: Any, form: str | None = "pt") -> None:
    weights = change(load_file(folder / SINGLE))
    save_file(weights, folder / SINGLE, metadata={"format": form} if form else None)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def input_major(weights: dict[str, Any]) -> dict[str, Any]:
    """Linear matrices as [in, out]; tables, norms and biases stay."""
    turn = ("_proj.weight", "lm_head.weight", "mlp.gate.weight")
    return {n: np.ascontiguousarray(w.T) if n.endswith(turn) else w for n, w in weights.items()}


@pytest.mark.parametrize("family", ["ernie4_5", "ernie4_5-biases", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("declared", ["option", "config", "metadata"])
def test_input_major_checkpoints(family: str, declared: str, tmp_path: Path) -> None:
    """Some matrices are square (q_proj of ERNIE here): only the declaration can tell."""
    reference, folder = saved(family, tmp_path)
    rewrite(folder, input_major, form="pd" if declared == "metadata" else "np")
    if declared == "config":
        edit_config(folder, weight_layout="in_out")
    option = {"weight_layout": "in_out"} if declared == "option" else {}
    got = Harness(build(folder, PARTS, **option)).logits("p", PROMPT)
    assert_logits(got, reference_logits(reference, PROMPT), 1e-4)


def test_an_undeclared_layout_is_refused(tmp_path: Path) -> None:
    _, folder = saved("qwen3", tmp_path)
    rewrite(folder, input_major, form="np")
    with pytest.raises(CheckpointError, match="weight layout: neither"):
        build(folder, PARTS)


def test_the_architecture_may_carry_its_older_name(tmp_path: Path) -> None:
    reference, folder = saved("ernie4_5", tmp_path)
    edit_config(folder, architectures=["Ernie4_5_ForCausalLM"])
    got = Harness(build(folder, PARTS)).logits("p", PROMPT)
    assert_logits(got, reference_logits(reference, PROMPT), 1e-4)


def test_every_missing_and_unexpected_name_is_listed(tmp_path: Path) -> None:
    _, folder = saved("llama2", tmp_path)

    def damage(weights: dict[str, Any]) -> dict[str, Any]:
        weights["model.layers.9.mlp.up_proj.weight"] = weights.pop("model.layers.1.mlp.up_proj.weight")
        weights["model.norm.weight"] = weights["model.norm.weight"][:-1].copy()
        del weights["lm_head.weight"]
        return weights

    rewrite(folder, damage)
    with pytest.raises(CheckpointError) as error:
        build(folder, PARTS)
    text = str(error.value)
    assert "missing (2):\n    lm_head.weight\n    model.layers.1.mlp.up_proj.weight" in text
    assert "unexpected (1):\n    model.layers.9.mlp.up_proj.weight" in text
    assert "model.norm.weight: want shape [64], have [63]" in text


def test_a_shared_table_needs_no_head_and_ignores_its_copy(tmp_path: Path) -> None:
    _, folder = saved("qwen3", tmp_path)
    want = Harness(build(folder, PARTS)).logits("p", PROMPT)
    assert "lm_head.weight" not in load_file(folder / SINGLE)
    rewrite(folder, lambda w: {**w, "lm_head.weight": np.zeros((131, 64), np.float32)})
    np.testing.assert_array_equal(Harness(build(folder, PARTS)).logits("p", PROMPT), want)


def test_old_tables_of_frequencies_are_ignored(tmp_path: Path) -> None:
    _, folder = saved("llama2", tmp_path)
    rewrite(folder, lambda w: {**w, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)})
    build(folder, PARTS)


def test_dummy_weights_need_a_configuration_alone(tmp_path: Path) -> None:
    _, folder = saved("qwen3", tmp_path)
    (folder / SINGLE).unlink()
    first, second = (Harness(build(folder, PARTS, load_format="dummy", seed=s)) for s in (1, 1))
    got = first.logits("p", PROMPT)
    assert np.isfinite(got).all()
    assert got.std() > 0
    np.testing.assert_array_equal(got, second.logits("p", PROMPT))
    other = Harness(build(folder, PARTS, load_format="dummy", seed=2))
    assert (other.logits("p", PROMPT) != got).any()


def test_experts_in_a_dense_architecture_are_refused(tmp_path: Path) -> None:
    _, folder = saved("llama2", tmp_path)
    edit_config(folder, num_experts=8, attn_logit_softcapping=30.0)
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM: .*attn_logit_softcapping.*num_experts"):
        build(folder, PARTS)


def test_more_logit_rows_than_planned_are_refused(tmp_path: Path) -> None:
    _, folder = saved("llama2", tmp_path)
    harness = Harness(build(folder, PARTS, max_num_seqs=4, max_num_tokens=16))
    with pytest.raises(ValueError, match="want at most 16 rows, have 17"):
        harness.step([("a", PROMPT[:17])])
    with pytest.raises(ValueError, match="want at most 4 rows, have 5"):
        harness.step([("b", PROMPT[:5])])
