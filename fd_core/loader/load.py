"""Fill a model's layers from a source, one layer at a time, so that no second copy of it exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from fd_core.api import dtype as dt
from fd_core.api.tensor import Tensor, empty_host, from_numpy
from fd_core.layers.weight import Parameter, Piece, Weighted
from fd_core.loader.errors import CheckpointError
from fd_core.loader.source import Array, WeightSource


def load_weights(
    layers: Sequence[Weighted],
    source: WeightSource,
    *,
    ignored: Sequence[str] = (),
    progress: bool | None = None,
) -> None:
    """Check everything, then read. `progress`: show a bar; None = only on a terminal."""
    declared = [(layer, layer.parameters()) for layer in layers]
    parameters = [p for _, found in declared for p in found.values()]
    source.check(parameters, ignored)
    hidden = None if progress is None else not progress
    total = sum(p.nbytes for p in parameters)
    with tqdm(total=total, unit="B", unit_scale=True, desc="loading weights", disable=hidden) as bar:
        for layer, found in declared:
            load_layer(layer, source, found)
            bar.update(sum(p.nbytes for p in found.values()))


def load_layer(layer: Weighted, source: WeightSource, found: Mapping[str, Parameter]) -> None:
    """One layer's parameters; what the layer copied need not stay in memory."""
    layer.load({name: read_parameter(source, p) for name, p in found.items()})
    release(source, found)


def release(source: WeightSource, parameters: Mapping[str, Parameter]) -> None:
    """What was read for these parameters was copied, or is not needed soon."""
    for parameter in parameters.values():
        for piece in parameter.pieces:
            source.release(piece)


def read_parameter(source: WeightSource, parameter: Parameter) -> Tensor:
    """The parameter as a host tensor: the source's own memory where that is possible, else a copy."""
    if len(parameter.pieces) == 1 and not parameter.pieces[0].index:
        array = source.read(parameter.pieces[0], parameter.spec.dtype)
        if _usable(array, parameter):
            return from_numpy(array)
    out = empty_host(parameter.spec)
    target = out.numpy()
    for piece in parameter.pieces:
        _place(target, piece, source.read(piece, parameter.spec.dtype))
    return out


def _usable(array: Array, parameter: Parameter) -> bool:
    flags = array.flags
    same = dt.dtype(array.dtype.name) == parameter.spec.dtype
    return same and bool(flags.c_contiguous) and bool(flags.aligned)


def _place(target: Array, piece: Piece, value: Array) -> None:
    part = target[piece.index]
    part[...] = convert(value.T if piece.transposed else value, part.dtype, piece.name)


def convert(value: Array, kind: np.dtype[Any], name: str) -> Array:
    """`value` in the type `kind`; a finite number must not become infinite (float16's range)."""
    if value.dtype == kind:
        return value
    with np.errstate(over="ignore"):
        out = value.astype(kind)
    if kind == np.float16:
        lost = np.isinf(out) & np.isfinite(value.astype(np.float32))
        if lost.any():
            raise CheckpointError(
                f"{name}: {int(lost.sum())} values are outside float16's range; use bfloat16 or float32"
            )
    return out
