"""`fd quantize`: what it writes, that loading it back is the same model in place, and what it refuses."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integer import make
from safetensors.numpy import save_file

from fd_core.cli.main import main
from fd_core.engine.build import EMBEDDED, build_model
from fd_core.engine.config import EngineConfig
from fd_core.host.session import open_session
from fd_core.llm import LLM, SamplingParams
from fd_core.loader.tensor_file import TensorFile

PROMPT = "The project is"


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The embedded model, converted once for each set of options."""
    make("wint8")  # skips where fd-cpu has no library
    made: dict[tuple[str, ...], Path] = {}

    def run(*options: str) -> Path:
        if options not in made:
            made[options] = tmp_path_factory.mktemp("converted") / "model"
            words = ["--method", *options, "--calibration", "none"]
            assert main(["quantize", str(EMBEDDED), str(made[options]), *words]) == 0
        return made[options]

    return run


def answer(model: Path | str, quantization: str = "") -> Any:
    llm = LLM(str(model), quantization=quantization)
    params = SamplingParams(max_tokens=12, temperature=0.0, logprobs=1, ignore_eos=True)
    (result,) = llm.generate([PROMPT], params)
    (output,) = result.outputs
    assert len(output.token_ids) == 12
    return output.token_ids, [p.logprob for p in output.logprobs or []]


def packed_of(model: Any) -> list[Any]:
    """The packed tensors of every quantised layer."""
    found: list[Any] = []
    for layer in model.layers_with_weights():
        packed = getattr(layer, "_packed", None)
        if packed is not None and layer.method.stored:
            found += packed if isinstance(packed, tuple) else [packed]
    return found


@pytest.mark.parametrize(
    ("options", "quantization"),
    [
        (("wint8",), "wint8"),
        (("w8a8",), "w8a8"),
        (("wint4", "--group-size", "64"), "wint4"),
        (("w4a8", "--group-size", "32"), '{"quantization": "w4a8", "group_size": 32}'),
        (("wint4", "--group-size", "-1"), '{"quantization": "wint4", "group_size": -1}'),
        (("w4a8", "--zero-point"), '{"quantization": "w4a8", "zero_point": true}'),
        (
            ("wint4", "--lm-head", "none", "--layer", "down_proj=w8a8", "--skip", "model.layers.2"),
            '{"quantization": "wint4", "lm_head": "none", "layers": {"down_proj": "w8a8"}, '
            '"skip": ["model.layers.2"]}',
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_the_model_is_the_one_made_while_loading(
    convert: Callable[..., Path], options: tuple[str, ...], quantization: str
) -> None:
    assert answer(convert(*options)) == answer("", quantization)


def test_weights_are_used_where_they_lie_in_the_file(convert: Callable[..., Path]) -> None:
    config = EngineConfig(model=str(convert("w4a8")))
    model = build_model(config, open_session())
    packed = packed_of(model)
    assert len(packed) == 7 * 4 + 2  # four layers a block; the head's panels and scales
    for tensor in packed:
        assert tensor.ptr % 4 == 0
        assert not tensor.storage.owner.flags.writeable, "a copy, not the file's memory"


def test_the_file(convert: Callable[..., Path]) -> None:
    folder = convert("w4a8")
    file = TensorFile(folder / "model.safetensors")
    assert "model.embed_tokens.weight" not in file.entries, "the table is the head's"
    assert file.entries["lm_head.qweight"].spec.shape == (128, 64, 32, 4)
    assert file.entries["model.layers.0.self_attn.q_proj.qweight"].spec.shape == (16, 4, 1088)
    assert all(e.start % 64 == 0 for n, e in file.entries.items() if n.endswith("qweight"))
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["forms"] == {"w4a8": "int4-panels-1", "w8a8": "int8-panels-1"}
    assert config["lm_head"] == "w8a8"
    assert {p.name for p in folder.iterdir()} >= {"tokenizer.json", "generation_config.json"}


def test_other_readers_of_the_format_can_open_it(convert: Callable[..., Path]) -> None:
    from safetensors import safe_open

    path = convert("wint8") / "model.safetensors"
    with safe_open(path, "numpy") as theirs:
        ours = TensorFile(path)
        assert set(theirs.keys()) == set(ours.entries)
        name = "model.layers.3.mlp.down_proj.qweight"
        np.testing.assert_array_equal(theirs.get_tensor(name), ours.read(name))


def test_the_checkpoint_wins_with_a_warning(
    convert: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fd"):
        assert answer(convert("w8a8"), "wint4") == answer(convert("w8a8"))
    assert "quantization 'wint4' is ignored: the checkpoint is 'w8a8'" in caplog.text


def test_refusals_come_before_anything_is_written(
    convert: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, full = str(convert("wint8")), tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    for words, why in [
        (
            [done, str(tmp_path / "a"), "--method", "wint4"],
            "want a checkpoint of plain weights, have one that",
        ),
        ([str(EMBEDDED), str(full), "--method", "wint4"], "want a folder that is empty or not there yet"),
        ([str(EMBEDDED), str(tmp_path / "b"), "--method", "w9"], "want one of .*have 'w9'"),
        (
            [str(EMBEDDED), str(tmp_path / "c"), "--method", "wint4", "--group-size", "48"],
            "want group_size 32",
        ),
        ([str(EMBEDDED), str(tmp_path / "d"), "--method", "wint4", "--layer", "x"], "want PATTERN=METHOD"),
        (
            [str(EMBEDDED), str(tmp_path / "e"), "--method", "wint4", "--calibration", "none.txt"],
            "--calibration: want a text file, self or none; have 'none.txt': no file",
        ),
    ]:
        assert main(["quantize", *words]) == 1
        text = capsys.readouterr().err
        assert why.split(".*")[-1] in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]


def test_a_form_that_is_not_known_is_refused(convert: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "newer"
    folder.mkdir()
    for file in convert("wint8").iterdir():
        (folder / file.name).symlink_to(file)
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"]["forms"]["wint8"] = "int8-panels-2"
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"want weights stored as 'int8-panels-1'.*have 'int8-panels-2'"):
        build_model(EngineConfig(model=str(folder)), open_session())


MEASURE = """
import sys
from fd_core.cli.main import main
assert main(["quantize", *sys.argv[1:]]) == 0
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def model_of(folder: Path, layers: int, hidden: int = 512, inner: int = 2048) -> Path:
    """A random decoder of some 8 MB a layer."""
    rng, kind = np.random.default_rng(0), np.dtype(np.float16)
    shapes = {
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes |= {f"self_attn.{n}_proj": (hidden, hidden) for n in "qkvo"}
    tensors = {"model.embed_tokens.weight": np.zeros((256, hidden), kind)}
    tensors["model.norm.weight"] = np.ones(hidden, kind)
    for i in range(layers):
        at = f"model.layers.{i}"
        for name, shape in shapes.items():
            tensors[f"{at}.{name}.weight"] = rng.standard_normal(shape, np.float32).astype(kind)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{norm}.weight"] = np.ones(hidden, kind)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16",
        "vocab_size": 256, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": hidden // 8,
        "max_position_embeddings": 512, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    make("wint8")
    peaks = []
    for layers in (3, 15):
        source = model_of(tmp_path / f"of{layers}", layers)
        words = [str(source), str(tmp_path / f"out{layers}"), "--method", "wint4"]
        words += ["--calibration", "none"]
        done = subprocess.run([sys.executable, "-c", MEASURE, *words], check=True, capture_output=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    # Twelve layers more are 96 MB of checkpoint and 26 MB of panels; of these, little may show.
    assert peaks[1] - peaks[0] < 12, peaks
