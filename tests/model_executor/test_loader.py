"""Folders of weights into parameters: names, shapes, layouts, types, memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from fd_core.api import dtype as dt
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.layers.weight import Parameter, Piece, Weighted, whole
from fd_core.loader.dummy import DummySource
from fd_core.loader.errors import CheckpointError
from fd_core.loader.folder import INDEX, SINGLE, FolderSource
from fd_core.loader.layout import WeightLayout, decide_layout
from fd_core.loader.load import load_weights, read_parameter
from fd_core.loader.open import open_source

F32 = dt.float32


class Layer(Weighted):
    def __init__(self, **parameters: Parameter) -> None:
        self._parameters = parameters
        self.values: dict[str, Any] = {}

    def parameters(self) -> dict[str, Parameter]:
        return self._parameters

    def load(self, values: Mapping[str, Tensor]) -> None:
        self.values = {name: value.numpy() for name, value in values.items()}


def weight(name: str, *shape: int, dtype: dt.DType = F32, linear: bool = True) -> Parameter:
    return whole(name, TensorSpec(shape, dtype), linear)


def folder_of(path: Path, arrays: dict[str, Any], form: str | None = "pt") -> Path:
    path.mkdir(exist_ok=True)
    save_file(arrays, path / SINGLE, metadata={"format": form} if form else None)
    return path


def sharded(path: Path, shards: dict[str, dict[str, Any]], index: dict[str, str] | None = None) -> Path:
    for file, arrays in shards.items():
        save_file(arrays, path / file, metadata={"format": "pt"})
    listed = index or {name: file for file, arrays in shards.items() for name in arrays}
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return path


def array(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# -- good checkpoints ----------------------------------------------------------------------------------


def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    a, b = array(3, 4), array(5, seed=1)
    sharded(tmp_path, {"m-1.safetensors": {"a": a}, "m-2.safetensors": {"b": b}})
    layer = Layer(a=weight("a", 3, 4), b=weight("b", 5))
    load_weights([layer], FolderSource(tmp_path), progress=False)
    np.testing.assert_array_equal(layer.values["a"], a)
    np.testing.assert_array_equal(layer.values["b"], b)


def test_pieces_are_rows_of_one_parameter(tmp_path: Path) -> None:
    q, k = array(4, 6), array(2, 6, seed=1)
    source = FolderSource(folder_of(tmp_path, {"q": q, "k": k}))
    spec = TensorSpec((6, 6), F32)
    rows = (Piece("q", (4, 6), True, (slice(0, 4),)), Piece("k", (2, 6), True, (slice(4, 6),)))
    merged = read_parameter(source, Parameter(spec, rows)).numpy()
    np.testing.assert_array_equal(merged, np.concatenate([q, k]))


def test_a_piece_may_be_wanted_transposed(tmp_path: Path) -> None:
    gate, up = array(3, 4), array(3, 4, seed=1)
    source = FolderSource(folder_of(tmp_path, {"gate": gate, "up": up}))
    spec = TensorSpec((1, 4, 6), F32)
    parts = (slice(0, 3), slice(3, 6))
    pieces = tuple(
        Piece(name, (3, 4), True, (0, slice(None), part), transposed=True)
        for name, part in zip(("gate", "up"), parts, strict=True)
    )
    stacked = read_parameter(source, Parameter(spec, pieces)).numpy()
    np.testing.assert_array_equal(stacked[0], np.concatenate([gate, up]).T)


def test_an_untouched_tensor_is_the_file_itself(tmp_path: Path) -> None:
    source = FolderSource(folder_of(tmp_path, {"a": array(3, 4)}))
    value = read_parameter(source, weight("a", 3, 4)).numpy()
    assert not value.flags.writeable or np.shares_memory(value, source.read(Piece("a", (3, 4)), F32))
    assert np.shares_memory(value, source.read(Piece("a", (3, 4)), F32))


@pytest.mark.parametrize("to", [dt.float32, dt.float16, dt.bfloat16])
@pytest.mark.parametrize("stored", [np.float32, np.float16])
def test_floats_are_converted_once(tmp_path: Path, stored: Any, to: dt.DType) -> None:
    value = array(3, 4).astype(stored)
    source = FolderSource(folder_of(tmp_path, {"a": value}))
    got = read_parameter(source, weight("a", 3, 4, dtype=to)).numpy()
    assert got.dtype == to.numpy()
    np.testing.assert_array_equal(got.astype(np.float64), value.astype(to.numpy()).astype(np.float64))


def test_float16_overflow_is_refused_by_name(tmp_path: Path) -> None:
    source = FolderSource(folder_of(tmp_path, {"a": np.array([1.0, 1e6, np.inf], np.float32)}))
    with pytest.raises(CheckpointError, match="a: 1 values are outside float16's range"):
        read_parameter(source, weight("a", 3, dtype=dt.float16))


def test_ignored_names_are_allowed(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": array(2), "l.0.rotary_emb.inv_freq": array(3)})
    layer = Layer(a=weight("a", 2))
    load_weights([layer], FolderSource(tmp_path), ignored=("*.rotary_emb.inv_freq",), progress=False)
    assert layer.values["a"].shape == (2,)


def test_one_tensor_may_serve_two_layers(tmp_path: Path) -> None:
    folder_of(tmp_path, {"table": array(4, 2)})
    layers = [Layer(a=weight("table", 4, 2)), Layer(b=weight("table", 4, 2))]
    load_weights(layers, FolderSource(tmp_path), progress=False)
    np.testing.assert_array_equal(layers[0].values["a"], layers[1].values["b"])


def test_layers_are_filled_one_at_a_time(tmp_path: Path) -> None:
    """Nothing of a later layer is read before an earlier one has taken its values."""
    folder_of(tmp_path, {"a": array(2), "b": array(2)})
    events: list[str] = []

    class Logged(FolderSource):
        def read(self, piece: Piece, dtype: dt.DType) -> Any:
            events.append(f"read {piece.name}")
            return super().read(piece, dtype)

    class Taking(Layer):
        def load(self, values: Mapping[str, Tensor]) -> None:
            events.append(f"take {', '.join(values)}")

    load_weights([Taking(a=weight("a", 2)), Taking(b=weight("b", 2))], Logged(tmp_path), progress=False)
    assert events == ["read a", "take a", "read b", "take b"]


# -- checkpoints that do not fit -------------------------------------------------------------------------


def test_one_error_lists_everything_and_nothing_is_loaded(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": array(3, 4), "extra": array(1), "n": np.arange(3)})
    layer = Layer(a=weight("a", 4, 3), gone=weight("gone", 2), n=weight("n", 3))
    with pytest.raises(CheckpointError) as error:
        load_weights([layer], FolderSource(tmp_path), progress=False)
    text = str(error.value)
    assert str(tmp_path) in text
    assert "missing (1):\n    gone" in text
    assert "unexpected (1):\n    extra" in text
    assert "a: want shape [4, 3] with layout out_in, have [3, 4]" in text
    assert "n: want dtype float32, have int64, which is not converted" in text
    assert layer.values == {}


def test_an_empty_folder_says_what_it_wants(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"want model.safetensors or .*have pytorch_model.bin"):
        FolderSource(tmp_path)


@pytest.mark.parametrize("name", ["../m.safetensors", "/etc/passwd", "sub/m.safetensors"])
def test_an_index_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="want file names inside the folder"):
        FolderSource(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="weight_map"):
        FolderSource(tmp_path)


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path, {"m.safetensors": {"a": array(2)}}, {"a": "m.safetensors", "b": "m.safetensors"})
    with pytest.raises(CheckpointError, match="the files lack tensors it lists: b"):
        FolderSource(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "m-2.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"m-2\.safetensors: cannot be read"):
        FolderSource(tmp_path)


def test_a_name_in_two_shards_is_refused(tmp_path: Path) -> None:
    shards = {"m-1.safetensors": {"a": array(2)}, "m-2.safetensors": {"a": array(2), "b": array(1)}}
    sharded(tmp_path, shards, {"a": "m-1.safetensors", "b": "m-2.safetensors"})
    with pytest.raises(CheckpointError, match=r"a: is in both m-1\.safetensors and m-2\.safetensors"):
        FolderSource(tmp_path)


# -- layouts ---------------------------------------------------------------------------------------------


def test_input_major_matrices_are_turned_and_tables_are_not(tmp_path: Path) -> None:
    w, table = array(3, 4), array(5, 4, seed=1)
    folder_of(tmp_path, {"w": np.ascontiguousarray(w.T), "table": table}, form="np")
    source = FolderSource(tmp_path, WeightLayout.IN_OUT)
    layer = Layer(w=weight("w", 3, 4), table=weight("table", 5, 4, linear=False))
    load_weights([layer], source, progress=False)
    np.testing.assert_array_equal(layer.values["w"], w)
    np.testing.assert_array_equal(layer.values["table"], table)


def test_a_square_matrix_follows_the_declaration(tmp_path: Path) -> None:
    w = array(4, 4)
    folder_of(tmp_path, {"w": w}, form="np")
    for layout, want in ((WeightLayout.IN_OUT, w.T), (WeightLayout.OUT_IN, w)):
        got = read_parameter(FolderSource(tmp_path, layout), weight("w", 4, 4)).numpy()
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("flag", "key", "formats", "want"),
    [
        ("auto", None, ["pt"], "out_in"),
        ("auto", None, ["pt", "pt", None], "out_in"),
        ("auto", None, ["pd"], "in_out"),
        ("auto", "in_out", ["np"], "in_out"),
        ("auto", "auto", ["pt"], "out_in"),
        ("in_out", None, ["np"], "in_out"),
        ("out_in", "out_in", ["pt"], "out_in"),
    ],
)
def test_layout_is_what_was_declared(flag: str, key: str | None, formats: Any, want: str) -> None:
    assert decide_layout(WeightLayout(flag), key, formats) is WeightLayout(want)


@pytest.mark.parametrize(
    ("flag", "key", "formats", "why"),
    [
        ("auto", None, ["np"], "neither config.json nor"),
        ("auto", None, [None], "neither config.json nor"),
        ("in_out", None, ["pt"], "contradiction"),
        ("auto", "in_out", ["pt"], "contradiction"),
        ("out_in", "in_out", [None], "contradiction"),
        ("auto", None, ["pt", "pd"], "contradiction"),
        ("auto", "sideways", ["pt"], "want one of auto, out_in, in_out"),
    ],
)
def test_doubt_about_the_layout_is_refused(flag: str, key: str | None, formats: Any, why: str) -> None:
    with pytest.raises(CheckpointError, match=why):
        decide_layout(WeightLayout(flag), key, formats)


# -- random weights --------------------------------------------------------------------------------------


def test_dummy_weights_repeat_and_differ_by_name_and_seed() -> None:
    def read(seed: int, name: str) -> Any:
        return read_parameter(DummySource(seed), weight(name, 64, 32, dtype=dt.bfloat16)).numpy()

    assert read(0, "a").tobytes() == read(0, "a").tobytes()
    assert read(0, "a").tobytes() != read(0, "b").tobytes()
    assert read(0, "a").tobytes() != read(1, "a").tobytes()
    values = read(0, "a").astype(np.float32)
    assert 0.015 < values.std() < 0.025
    assert len({row.tobytes() for row in values}) == 64


def test_dummy_scales_are_one_and_biases_zero() -> None:
    source = DummySource()
    assert (read_parameter(source, weight("m.norm.weight", 5)).numpy() == 1).all()
    assert (read_parameter(source, weight("m.q_proj.bias", 5)).numpy() == 0).all()


def test_dummy_rows_larger_than_the_pool_still_fill() -> None:
    value = read_parameter(DummySource(), weight("a", 1100, 1024, dtype=dt.float16)).numpy()
    assert np.isfinite(value.astype(np.float32)).all()
    assert value[1099].astype(np.float32).std() > 0.01


def test_open_source_names_its_formats(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="want one of auto, safetensors, dummy; have 'gguf'"):
        open_source(tmp_path, "gguf")
    assert isinstance(open_source(tmp_path, "dummy"), DummySource)


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False), (None, False)])
def test_the_bar_is_silent_unless_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], progress: bool | None, shown: bool
) -> None:
    folder_of(tmp_path, {"a": array(2)})
    load_weights([Layer(a=weight("a", 2))], FolderSource(tmp_path), progress=progress)
    assert ("loading weights" in capsys.readouterr().err) is shown


def test_bfloat16_is_not_copied(tmp_path: Path) -> None:
    value = np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16)
    entry = {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]}
    header = {"__metadata__": {"format": "pt"}, "a": entry}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (tmp_path / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + value.tobytes())
    source = FolderSource(tmp_path)
    got = read_parameter(source, weight("a", 3, 4, dtype=dt.bfloat16)).numpy()
    assert got.tobytes() == value.tobytes()
    assert np.shares_memory(got, source.read(Piece("a", (3, 4)), dt.bfloat16))
