"""A folder of safetensors: one file, or shards with an index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fd_core.api.dtype import FLOATS, DType
from fd_core.api.tensor import Shape
from fd_core.layers.weight import Parameter, Piece
from fd_core.loader.errors import CheckpointError
from fd_core.loader.layout import WeightLayout, decide_layout
from fd_core.loader.source import Array, WeightSource
from fd_core.loader.tensor_file import TensorFile

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class FolderSource(WeightSource):
    """All files are opened (mapped) at once; data are read when asked for."""

    def __init__(
        self, folder: Path, layout: WeightLayout = WeightLayout.AUTO, config_layout: str | None = None
    ) -> None:
        self.folder = folder
        self._files = {name: TensorFile(folder / name) for name in _file_names(folder)}
        self._where = _locate(self._files)
        _check_index(folder, self._where)
        formats = [file.metadata.get("format") for file in self._files.values()]
        self.layout = decide_layout(layout, config_layout, formats)

    def names(self) -> list[str]:
        return list(self._where)

    def check(self, parameters: Sequence[Parameter], ignored: Sequence[str] = ()) -> None:
        pieces = [(piece, p.spec.dtype) for p in parameters for piece in p.pieces]
        wanted = {piece.name for piece, _ in pieces}
        missing = sorted(wanted - set(self._where))
        extra = (n for n in self._where if n not in wanted and not any(fnmatch(n, p) for p in ignored))
        wrong = [text for piece, dtype in pieces for text in self._complaints(piece, dtype)]
        lines = [*_lines("missing", missing), *_lines("unexpected", sorted(extra)), *_lines("wrong", wrong)]
        if lines:
            raise CheckpointError(f"{self.folder}: the weights do not fit the model\n" + "\n".join(lines))

    def _complaints(self, piece: Piece, want: DType) -> Iterator[str]:
        file = self._where.get(piece.name)
        if file is None:
            return
        have = file.entries[piece.name].spec
        shape = self._stored(piece)
        if have.shape != shape:
            hint = f" with layout {self.layout.value}" if piece.linear else ""
            yield f"{piece.name}: want shape {list(shape)}{hint}, have {list(have.shape)}"
        if have.dtype != want and not (have.dtype in FLOATS and want in FLOATS):
            yield f"{piece.name}: want dtype {want}, have {have.dtype}, which is not converted"

    def _turned(self, piece: Piece) -> bool:
        return piece.linear and self.layout is WeightLayout.IN_OUT

    def _stored(self, piece: Piece) -> Shape:
        return piece.shape[::-1] if self._turned(piece) else piece.shape

    def read(self, piece: Piece, dtype: DType) -> Array:
        array = self._where[piece.name].read(piece.name)
        return array.T if self._turned(piece) else array

    def release(self, piece: Piece) -> None:
        self._where[piece.name].release(piece.name)

    def close(self) -> None:
        self._where, self._files = {}, {}


def _lines(what: str, items: Sequence[str]) -> list[str]:
    return [f"  {what} ({len(items)}):", *(f"    {item}" for item in items)] if items else []


def _file_names(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        return sorted(set(_weight_map(folder).values()))
    if (folder / SINGLE).is_file():
        return [SINGLE]
    have = ", ".join(sorted(p.name for p in folder.glob("*"))) or "nothing"
    raise CheckpointError(f"{folder}: want {SINGLE} or {INDEX}, have {have}")


def _weight_map(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    try:
        found: Any = json.loads(path.read_text("utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: want a JSON object with weight_map ({error!r})") from None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise CheckpointError(f"{path}: weight_map: want {{tensor name: file name}}")
    for file in set(found.values()):
        if Path(file).name != file:
            raise CheckpointError(f"{path}: want file names inside the folder, have {file!r}")
    return found


def _locate(files: dict[str, TensorFile]) -> dict[str, TensorFile]:
    where: dict[str, TensorFile] = {}
    for file in files.values():
        for name in file.entries:
            if name in where:
                raise CheckpointError(f"{name}: is in both {where[name].path.name} and {file.path.name}")
            where[name] = file
    return where


def _check_index(folder: Path, where: dict[str, TensorFile]) -> None:
    if not (folder / INDEX).is_file():
        return
    listed = _weight_map(folder)
    wrong = [n for n, file in listed.items() if n not in where or where[n].path.name != file]
    if wrong:
        raise CheckpointError(
            f"{folder / INDEX}: the files lack tensors it lists: {', '.join(sorted(wrong))}"
        )
