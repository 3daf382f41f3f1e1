"""Merged linear layers: what they ask of the checkpoint, whatever the quantisation method stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

from fd_core.api import dtype as dt
from fd_core.api.device import DeviceInfo
from fd_core.api.quant import LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy
from fd_core.api.verdict import YES, Verdict
from fd_core.host.reference import ReferencePlatform
from fd_core.layers.context import ModelContext
from fd_core.layers.linear import Linear

PLATFORM = ReferencePlatform()


class Packed(QuantMethod):
    """Two outputs per stored row, a scale per output: the shape of a 4-bit checkpoint."""

    name: ClassVar[str] = "packed"
    wanted: ClassVar[dict[str, int]] = {}

    @classmethod
    def supports(cls, spec: LinearSpec, device: DeviceInfo) -> Verdict:
        return YES

    def create_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        half = TensorSpec((spec.out_features // 2, spec.in_features), dt.uint8)
        return {"quant_weight": half, "weight_scale": TensorSpec((spec.out_features,), dt.float32)}

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        return {name: value.numpy().copy() for name, value in weights.items()}

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        shift = 0.0 if bias is None else bias.numpy()
        out.numpy()[...] = x.numpy().sum() + packed["weight_scale"] + shift


def linear(shards: list[tuple[str, int]], bias: bool = False, table: bool = False) -> Linear:
    device = PLATFORM.open(0)
    method = Packed(device, PLATFORM, None)
    context = ModelContext(
        platform=PLATFORM,
        device=device,
        ops=None,  # type: ignore[arg-type]
        dtype=dt.bfloat16,
        cache_dtype=dt.bfloat16,
        block_size=8,
        max_num_tokens=4,
        max_num_seqs=4,
        max_model_len=8,
        quant=lambda spec: method,
    )
    return Linear(context, 3, shards, bias=bias, table=table)


def test_shards_share_a_packed_parameter_in_proportion() -> None:
    layer = linear([("a.q", 4), ("a.k", 2), ("a.v", 2)])
    pieces = layer.parameters()["quant_weight"].pieces
    assert [p.name for p in pieces] == ["a.q.quant_weight", "a.k.quant_weight", "a.v.quant_weight"]
    assert [p.shape for p in pieces] == [(2, 3), (1, 3), (1, 3)]
    assert [p.index for p in pieces] == [(slice(0, 2),), (slice(2, 3),), (slice(3, 4),)]
    scales = layer.parameters()["weight_scale"].pieces
    assert [(p.shape, p.linear) for p in scales] == [((4,), False), ((2,), False), ((2,), False)]
    assert all(p.linear for p in pieces)


def test_a_shard_that_cannot_be_packed_is_refused() -> None:
    layer = linear([("a.q", 3), ("a.k", 3)])
    with pytest.raises(ValueError, match=r"a.q.quant_weight: packed stores 3 rows for 6 outputs"):
        layer.parameters()


def test_specification_of_the_merged_layer() -> None:
    layer = linear([("a.q", 4), ("a.k", 2)], bias=True)
    want = LinearSpec(3, 6, True, dt.bfloat16, dt.float32, prefix="a.q")
    assert layer.spec == want


def test_a_table_is_no_linear_matrix() -> None:
    assert not linear([("embed", 4)], table=True).parameters()["quant_weight"].pieces[0].linear


def test_weights_and_bias_reach_the_method() -> None:
    layer = linear([("a", 4)], bias=True)
    values = {
        name: from_numpy(np.indices(p.spec.shape)[-1].astype(p.spec.dtype.numpy()))
        for name, p in layer.parameters().items()
    }
    layer.load(values)
    x, out = np.ones((1, 3), np.float32), np.zeros((1, 4), np.float32)
    layer(from_numpy(x), from_numpy(out))
    np.testing.assert_array_equal(out, [[3.0, 5.0, 7.0, 9.0]])
