"""Checkpoints in and out: safetensors folders in either layout, and Paddle's .pdparams.

Checkpoint names are those of the published models (`model.layers.0.self_attn.q_proj.weight`), whatever
the Paddle model calls its parts; a layer that holds several matrices side by side is put together from them
and taken apart again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from fd_core.api.dtype import DType, dtype
from fd_core.api.tensor import Shape
from fd_core.layers.weight import Parameter, Piece
from fd_core.loader.errors import CheckpointError
from fd_core.loader.folder import SINGLE, FolderSource
from fd_core.loader.layout import WeightLayout
from fd_core.loader.load import convert as cast
from fd_core.loader.source import Array, WeightSource
from fd_core.paddle.context import TensorParallel
from fd_core.paddle.layer import EngineLayer
from fd_core.paddle.tensors import from_array

Layout = WeightLayout | str
#: What the `format` entry of a file's metadata says of the layout.
_FORMATS = {WeightLayout.OUT_IN: "pt", WeightLayout.IN_OUT: "pd"}


def load(
    model: paddle.nn.Layer,
    path: Path | str,
    layout: Layout = WeightLayout.AUTO,
    *,
    ignored: Sequence[str] = (),
) -> list[str]:
    """Fill all of the model's fd-core layers from a safetensors folder or a .pdparams file.

    Each rank of a split layer reads its part. CheckpointError lists what is missing, unexpected (but for
    the patterns `ignored`) or misshapen, before anything is changed. Returns the names of parameters of
    other layers, which are left as they are.
    """
    source = open_checkpoint(Path(path), WeightLayout(layout))
    layers = list(engine_layers(model))
    whole = [_whole(layer, p) for _, layer in layers for p in layer.declared.values()]
    source.check(whole, ignored)
    for _, layer in layers:
        for name, parameter in layer.declared.items():
            layer.fill(name, _read(source, layer, parameter))
    ours = {f"{prefix}.{name}" for prefix, layer in layers for name in layer.declared}
    return [name for name in model.state_dict() if name not in ours]


def engine_layers(model: paddle.nn.Layer) -> Iterator[tuple[str, EngineLayer]]:
    for prefix, layer in model.named_sublayers(include_self=True):
        if isinstance(layer, EngineLayer):
            yield prefix, layer


def open_checkpoint(path: Path, layout: WeightLayout) -> WeightSource:
    if path.is_dir():
        return FolderSource(path, layout)
    if path.suffix != ".pdparams":
        raise CheckpointError(f"{path}: want a folder of safetensors or a .pdparams file")
    return ParamsSource(path, layout)


class ParamsSource(WeightSource):
    """A .pdparams file, read by Paddle. Linear matrices are [in, out] unless `layout` says otherwise.

    Paddle unpickles it: open only files that you trust.
    """

    def __init__(self, path: Path, layout: WeightLayout = WeightLayout.AUTO) -> None:
        self.path = path
        self.layout = WeightLayout.IN_OUT if layout is WeightLayout.AUTO else layout
        self._arrays = {name: _array(value) for name, value in paddle.load(str(path)).items()}

    def arrays(self) -> dict[str, Array]:
        return self._arrays

    def check(self, parameters: Sequence[Parameter], ignored: Sequence[str] = ()) -> None:
        pieces = {piece.name: piece for p in parameters for piece in p.pieces}
        lines = [f"  missing: {name}" for name in pieces if name not in self._arrays]
        extra = (n for n in self._arrays if n not in pieces and not any(fnmatch(n, p) for p in ignored))
        lines += [f"  unexpected: {name}" for name in extra]
        wrong = (p for n, p in pieces.items() if n in self._arrays and self._turn(p).shape != p.shape)
        lines += [f"  wrong: {self._shapes(piece)}" for piece in wrong]
        if lines:
            raise CheckpointError(f"{self.path}: the weights do not fit the model\n" + "\n".join(lines))

    def _shapes(self, piece: Piece) -> str:
        want, have = list(piece.shape), list(self._turn(piece).shape)
        return f"{piece.name}: want [out, in] {want}, have {have} in layout {self.layout.value}"

    def _turn(self, piece: Piece) -> Array:
        found = self._arrays[piece.name]
        return found.T if piece.linear and self.layout is WeightLayout.IN_OUT else found

    def read(self, piece: Piece, kind: DType) -> Array:
        return self._turn(piece)


def _array(value: Any) -> Array:
    """Host arrays with their real element types; Paddle hands out bfloat16 as 16-bit integers."""
    if not isinstance(value, paddle.Tensor):
        return np.asarray(value)
    array: Array = value.numpy()
    name = str(value.dtype).rpartition(".")[2]
    return array.view(dtype(name).numpy()) if array.dtype.name != name else array


# -- parts of split layers -----------------------------------------------------------------------------


def _cut(layer: EngineLayer, shape: Shape) -> tuple[int, TensorParallel] | None:
    """The dimension that is split over the ranks, for a tensor of this rank's `shape`; None for none."""
    split, tp = getattr(layer, "split", None), layer.context.tp
    return None if split is None or tp.size == 1 or split >= len(shape) else (split, tp)


def _whole(layer: EngineLayer, parameter: Parameter) -> Parameter:
    """The parameter with its pieces as a checkpoint of all ranks has them."""
    return replace(parameter, pieces=tuple(_all_ranks(layer, piece) for piece in parameter.pieces))


def _all_ranks(layer: EngineLayer, piece: Piece) -> Piece:
    cut = _cut(layer, piece.shape)
    if cut is None:
        return piece
    dim, tp = cut
    shape = tuple(n * tp.size if i == dim else n for i, n in enumerate(piece.shape))
    return replace(piece, shape=shape)


def _read(source: WeightSource, layer: EngineLayer, parameter: Parameter) -> Array:
    out = np.empty(parameter.spec.shape, parameter.spec.dtype.numpy())
    for piece in parameter.pieces:
        value = source.read(_all_ranks(layer, piece), parameter.spec.dtype)
        cut = _cut(layer, piece.shape)
        if cut is not None:
            dim, tp = cut
            size = piece.shape[dim]
            value = np.take(value, range(tp.rank * size, (tp.rank + 1) * size), axis=dim)
        part = out[piece.index]
        part[...] = cast(value.T if piece.transposed else value, out.dtype, piece.name)
    return out


# -- out -----------------------------------------------------------------------------------------------


def save(
    model: paddle.nn.Layer, path: Path | str, layout: Layout = WeightLayout.IN_OUT, metadata: Any = None
) -> None:
    """Write the model's fd-core layers under checkpoint names: a folder of safetensors, or a .pdparams.

    `layout`: in_out as Paddle stores linear matrices, out_in as published checkpoints do (a .pdparams is
    always in_out). The engine serves the folder once config.json lies beside it.
    """
    path, order = Path(path), WeightLayout(layout)
    if path.suffix == ".pdparams":
        order = WeightLayout.IN_OUT
    found = dict(_pieces(model, order))
    if path.suffix == ".pdparams":
        paddle.save({name: from_array(value) for name, value in found.items()}, str(path))
        return
    write_safetensors(found, path, order, metadata)


def _pieces(model: paddle.nn.Layer, order: WeightLayout) -> Iterator[tuple[str, Array]]:
    for prefix, layer in engine_layers(model):
        if layer.context.tp.size > 1:
            raise CheckpointError(
                f"{prefix}: want 1 tensor-parallel rank to save, have {layer.context.tp.size}"
            )
        for name, parameter in layer.declared.items():
            array = layer.array(name)
            for piece in parameter.pieces:
                value = array[piece.index].T if piece.transposed else array[piece.index]
                turn = piece.linear and order is WeightLayout.IN_OUT
                yield piece.name, np.ascontiguousarray(value.T if turn else value)


_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float8_e4m3fn": "F8_E4M3", "int8": "I8",
          "int32": "I32", "int64": "I64", "uint8": "U8", "float64": "F64", "bool": "BOOL"}  # fmt: skip


def write_safetensors(
    arrays: dict[str, Array], folder: Path, order: WeightLayout, metadata: Any = None
) -> None:
    """One file (https://huggingface.co/docs/safetensors) whose metadata declares the layout."""
    header: dict[str, Any] = {"__metadata__": {"format": _FORMATS[order], **(metadata or {})}}
    start = 0
    for name, array in arrays.items():
        kind, stop = _NAMES[array.dtype.name], start + array.nbytes
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data start at a multiple of 8 bytes
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / SINGLE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.tobytes())


def convert(params: Path | str, folder: Path | str, layout: Layout = WeightLayout.AUTO) -> None:
    """A .pdparams file as a safetensors folder that the engine reads without Paddle; names are kept."""
    source = ParamsSource(Path(params), WeightLayout(layout))
    arrays = {name: np.ascontiguousarray(value) for name, value in source.arrays().items()}
    write_safetensors(arrays, Path(folder), source.layout)
