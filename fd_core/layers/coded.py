"""Linear layers and experts from checkpoints that hold codes in an order that is not their method's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fd_core.api.quant import ExpertSpec, LinearSpec
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy
from fd_core.layers.weight import Parameter, whole
from fd_core.quantization.codes import CodeFormat, Codes

Array = np.ndarray[Any, Any]
#: A matrix of the checkpoint: its name without the parameter's, and its output features.
Shard = tuple[str, int]


def coded_parameters(codes: CodeFormat, spec: LinearSpec, shards: Sequence[Shard]) -> dict[str, Parameter]:
    """Every matrix's tensors; their keys begin with its place among `shards`."""
    return {
        f"{i}.{name}": whole(f"{prefix}.{name}", one)
        for i, (prefix, rows) in enumerate(_matrices(codes, spec, shards))
        for name, one in codes.tensors(rows, spec.in_features).items()
    }


def decoded(
    codes: CodeFormat, spec: LinearSpec, shards: Sequence[Shard], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What `process_weights` takes, of the tensors of `coded_parameters`; QuantError where the method's
    grid does not hold them."""
    found = []
    for i, (prefix, rows) in enumerate(_matrices(codes, spec, shards)):
        stored = {name: values[f"{i}.{name}"].numpy() for name in codes.tensors(rows, spec.in_features)}
        found.append(codes.decode(stored, rows, spec.in_features))
        found[-1].check(codes.grid, prefix)
    return dict(_given(found, codes.grid.group))


def stacked_parameters(codes: CodeFormat, spec: ExpertSpec) -> dict[str, Parameter]:
    """Those of all experts of a layer, where they are stored as one, matrix by matrix."""
    return {
        f"{matrix}.{name}": whole(f"{spec.prefix}.{matrix}.{name}", TensorSpec(shape, one.dtype))
        for matrix, linear in spec.matrices.items()
        for name, one in codes.tensors(linear.out_features, linear.in_features).items()
        for shape in [(spec.experts, *one.shape)]
    }


def decoded_from_stacks(
    codes: CodeFormat, spec: ExpertSpec, expert: int, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What `ExpertMethod.pack` takes of one expert."""
    found: dict[str, Tensor] = {}
    for matrix, linear in spec.matrices.items():
        names = codes.tensors(linear.out_features, linear.in_features)
        stored = {f"0.{name}": values[f"{matrix}.{name}"].select(expert) for name in names}
        found |= named_for_experts(matrix, decoded(codes, linear, [], stored))
    return found


def named_for_experts(matrix: str, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`process_weights`'s tensors as `ExpertMethod.pack` calls them."""
    return {matrix if name == "weight" else f"{matrix}.{name}": value for name, value in given.items()}


def _matrices(codes: CodeFormat, spec: LinearSpec, shards: Sequence[Shard]) -> Sequence[Shard]:
    return [(spec.prefix, spec.out_features)] if codes.joined else shards


def _given(found: Sequence[Codes], group: int) -> Iterator[tuple[str, Tensor]]:
    yield "weight", _rows([one.weight(group) for one in found])
    yield "scale", _rows([one.scale for one in found])
    zeros = [one.zero for one in found if one.zero is not None]
    if zeros:
        yield "zero", _rows(zeros)


def _rows(parts: Sequence[Array]) -> Tensor:
    """One after the other, float32."""
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return from_numpy(np.ascontiguousarray(joined, np.float32))
