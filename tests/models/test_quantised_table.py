"""An embedding table that is not the head: held as the head is, looked up in its codes, stored and used in
place; left alone where a method has no lookups."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Harness, Parts, build, cpu_parts
from test_quantised_experts import dequantised, with_config
from tiny_models import VOCAB, make, reference_logits, save

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec, from_numpy
from fd_core.cli.main import main
from fd_core.host.errors import UnsupportedOpError
from fd_core.layers.embedding import Embedding, PackedEmbedding, SharedEmbedding
from fd_core.loader.tensor_file import TensorFile

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")
PROMPT = [int(t) for t in np.random.default_rng(3).integers(0, VOCAB, 41)]
TABLE = "model.embed_tokens"


@pytest.fixture(scope="module")
def parts() -> Parts:
    found = cpu_parts()
    from fd_cpu.quant_integer import METHODS

    return replace(found, quant_methods={**found.quant_methods, **{m.name: m for m in METHODS}})


@pytest.fixture(scope="module")
def reference() -> Any:
    return make("llama2", "bfloat16")


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(reference, tmp_path_factory.mktemp("untied"), "bfloat16")


def loaded(folder: Path, parts: Parts, tmp_path: Path, **config: Any) -> Any:
    return build(with_config(folder, tmp_path / "m", config), parts, cache="float32")


def rows_of(model: Any, parts: Parts) -> Any:
    """Every row that the model looks up."""
    out = parts.platform.empty(TensorSpec((VOCAB, 64), model.context.activation_dtype))
    model.embed(from_numpy(np.arange(VOCAB, dtype=np.int32)), out)
    return np.array(out.numpy(), np.float32)


@pytest.mark.parametrize("name", ["wint8", "w8a8", "wint4", "w4a8"])
def test_rows_are_within_half_a_step(
    name: str, folder: Path, reference: Any, parts: Parts, tmp_path: Path
) -> None:
    """int8 whatever the dense layers are; a step is the row's absmax / 127, and codes are rounded."""
    model = loaded(folder, parts, tmp_path, quantization=name)
    assert isinstance(model.embed, PackedEmbedding)
    assert model.embed.table.method.name == {"wint4": "wint8", "w4a8": "w8a8"}.get(name, name)
    plain = reference.model.embed_tokens.weight.detach().numpy()
    half = np.abs(plain).max(1, keepdims=True) / 127 / 2
    away = np.abs(rows_of(model, parts) - plain)
    assert (away <= half * (1 + 1e-5)).all()
    assert away.any()


def test_logits_equal_transformers_on_dequantised_weights(
    folder: Path, reference: Any, parts: Parts, tmp_path: Path
) -> None:
    """float32 sums in another order, over three layers."""
    got = Harness(loaded(folder, parts, tmp_path, quantization="wint8")).logits("p", PROMPT)
    want = reference_logits(dequantised(reference, parts, "wint8"), PROMPT)
    assert np.abs(got - want).max() / want.std() <= 1e-4


@pytest.mark.parametrize(
    ("said", "method"),
    [
        ({}, "wint8"),
        ({"lm_head": "wint4"}, "wint4"),
        ({"lm_head": "none"}, ""),
        ({"lm_head": "none", "embed_tokens": "wint8"}, "wint8"),
        ({"embed_tokens": "none"}, ""),
        ({"skip": ["embed_tokens"]}, ""),
        ({"layers": {"embed_tokens": "w8a8"}}, "w8a8"),
    ],
    ids=str,
)
def test_the_method_is_the_heads_unless_said(
    said: dict[str, Any], method: str, folder: Path, parts: Parts, tmp_path: Path
) -> None:
    model = loaded(folder, parts, tmp_path, quantization="wint4", **said)
    found = model.embed.table.method.name if isinstance(model.embed, PackedEmbedding) else ""
    assert found == method


def test_a_shared_table_is_the_heads(parts: Parts, tmp_path: Path) -> None:
    folder = save(make("llama3", "bfloat16"), tmp_path / "tied", "bfloat16")
    model = loaded(folder, parts, tmp_path, quantization="wint8", embed_tokens="wint4")
    assert isinstance(model.embed, SharedEmbedding)


@pytest.mark.parametrize("options", [["w4a8"], ["wint4", "--zero-point", "--lm-head", "wint4"]])
def test_converted_tables_are_used_where_they_lie(
    options: list[str], folder: Path, parts: Parts, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["--method", *options, "--calibration", "none"]
    assert main(["quantize", str(folder), str(out), *words]) == 0
    names = {n for n in TensorFile(out / "model.safetensors").entries if n.startswith(TABLE)}
    want = {"qweight"} if "--lm-head" in options else {"qweight", "scale"}
    assert names == {f"{TABLE}.{n}" for n in want}
    model = build(out, parts, cache="float32")
    packed = model.embed.table._packed
    for tensor in packed if isinstance(packed, tuple) else (packed,):
        assert not tensor.storage.owner.flags.writeable, "a copy, not the file's memory"
    config = {"quantization": options[0], "zero_point": "--zero-point" in options}
    made = loaded(folder, parts, tmp_path, **config, **({"lm_head": "wint4"} if len(options) > 1 else {}))
    np.testing.assert_array_equal(rows_of(model, parts), rows_of(made, parts))
    np.testing.assert_array_equal(Harness(model).logits("p", PROMPT), Harness(made).logits("p", PROMPT))


def test_checkpoints_from_before_tables_were_converted(folder: Path, parts: Parts, tmp_path: Path) -> None:
    """Their config.json says nothing of tables, and they hold a plain one."""
    out = tmp_path / "out"
    words = ["--method", "wint8", "--skip", "embed_tokens"]
    assert main(["quantize", str(folder), str(out), *words]) == 0
    raw = json.loads((out / "config.json").read_text())
    del raw["quantization_config"]["embed_tokens"]
    raw["quantization_config"]["skip"] = []
    (out / "config.json").write_text(json.dumps(raw))
    model = build(out, parts)
    assert type(model.embed) is Embedding
    assert model.embed.weight.dtype == dt.bfloat16


def test_methods_without_lookups_leave_it_alone_and_refuse_it_by_name(
    folder: Path, parts: Parts, tmp_path: Path
) -> None:
    class Products(parts.quant_methods["wint8"]):  # type: ignore[name-defined,misc]
        has_lookup = False

    limited = replace(parts, quant_methods={**parts.quant_methods, "wint8": Products})
    model = loaded(folder, limited, tmp_path, quantization="wint8")
    assert type(model.embed) is Embedding
    why = (
        r"'wint8': model.embed_tokens: .*want lookups of rows, have products alone; fix: leave embed_tokens"
    )
    (tmp_path / "named").mkdir()
    with pytest.raises(UnsupportedOpError, match=why):
        loaded(folder, limited, tmp_path / "named", quantization="wint8", embed_tokens="wint8")
