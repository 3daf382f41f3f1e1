"""Checkpoints between the engine and Paddle models, in every format and both layouts."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fd_core.host.session import current_session
from fd_core.loader.errors import CheckpointError
from fd_core.models.config import load_config
from fd_core.testkit.harness import Harness, build

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
IDS = [3, 90, 14, 7, 7, 101]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_models import make, save

    return save(make("llama2", "bfloat16"), tmp_path_factory.mktemp("llama"), "bfloat16")


@pytest.fixture
def model(paddle: Any, folder: Path) -> Any:
    from llama import Llama, context_for

    from fd_core.paddle import load

    config = load_config(folder)
    made = Llama(context_for(config), config)
    load(made, folder)
    return made


def engine_logits(folder: Path) -> Any:
    return Harness(build(folder, current_session())).logits("text", IDS)


def paddle_logits(model: Any) -> Any:
    from llama import new_caches, step

    return step(model, new_caches(model), IDS, 0)


@pytest.mark.parametrize("layout", ["in_out", "out_in"])
def test_the_engine_serves_what_a_paddle_model_saved(
    model: Any, folder: Path, tmp_path: Path, layout: str
) -> None:
    from fd_core.paddle import save

    save(model, tmp_path, layout)
    shutil.copy(folder / "config.json", tmp_path)
    np.testing.assert_array_equal(engine_logits(tmp_path), engine_logits(folder))


def test_pdparams_under_checkpoint_names_both_ways(model: Any, folder: Path, tmp_path: Path) -> None:
    from llama import Llama, context_for

    from fd_core.paddle import convert, load, save

    save(model, tmp_path / "model.pdparams")
    config = load_config(folder)
    other = Llama(context_for(config), config)
    load(other, tmp_path / "model.pdparams")
    np.testing.assert_array_equal(paddle_logits(other), paddle_logits(model))
    convert(tmp_path / "model.pdparams", tmp_path / "converted")
    shutil.copy(folder / "config.json", tmp_path / "converted")
    np.testing.assert_array_equal(engine_logits(tmp_path / "converted"), engine_logits(folder))


def test_state_dict_files(paddle: Any, model: Any, folder: Path, tmp_path: Path) -> None:
    from llama import Llama, context_for

    paddle.save(model.state_dict(), str(tmp_path / "state.pdparams"))
    config = load_config(folder)
    other = Llama(context_for(config), config)
    missing, unexpected = other.set_state_dict(paddle.load(str(tmp_path / "state.pdparams")))
    assert (missing, unexpected) == ([], [])
    np.testing.assert_array_equal(paddle_logits(other), paddle_logits(model))


@pytest.mark.parametrize("kind", ["folder", "pdparams"])
def test_what_does_not_fit_is_listed_before_anything_is_changed(
    paddle: Any, tmp_path: Path, kind: str
) -> None:
    from fd_core import paddle as fd

    small = fd.Linear(fd.make_context(), 8, 4, prefix="a")
    small.weight.set_value(paddle.ones([8, 4]))
    path = tmp_path / ("x.pdparams" if kind == "pdparams" else "folder")
    fd.save(small, path)

    class Two(paddle.nn.Layer):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first = fd.Linear(fd.make_context(), 8, 5, prefix="a")
            self.second = fd.Linear(fd.make_context(), 8, 4, prefix="b")

    model = Two()
    with pytest.raises(CheckpointError, match=r"do not fit the model") as caught:
        fd.load(model, path)
    for text in ("missing", "b.weight", "a.weight: want"):
        assert text in str(caught.value)
    assert not model.first.weight.numpy().any()


def test_other_files_and_other_layers(paddle: Any, tmp_path: Path) -> None:
    from fd_core import paddle as fd

    with pytest.raises(CheckpointError, match=r"want a folder of safetensors or a .pdparams file"):
        fd.load(fd.Linear(fd.make_context(), 8, 4), tmp_path / "x.bin")
    mixed = paddle.nn.Sequential(fd.Linear(fd.make_context(), 8, 4, prefix="a"), paddle.nn.Linear(4, 4))
    fd.save(mixed, tmp_path)
    assert fd.load(mixed, tmp_path) == ["1.weight", "1.bias"]
    split = fd.Linear(fd.make_context(tp=fd.TensorParallel(0, 2)), 8, 4)
    with pytest.raises(CheckpointError, match="want 1 tensor-parallel rank to save, have 2"):
        fd.save(split, tmp_path)
