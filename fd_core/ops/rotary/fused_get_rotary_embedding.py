"""fused_get_rotary_embedding: cos and sin tables of given positions, base 10000."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import float32
from fd_core.api.tensor import TensorSpec
from fd_core.ops.checks import check
from fd_core.ops.schema import Case, In, Out, Tolerance, op

TOLERANCE = Tolerance(
    "float64 up to one rounding: libraries' cos and sin differ by an ulp of float64, times the angle",
    {"float32": (2e-7, 1e-7)},
)


def _case(batch: int, length: int, head_dim: int, prompt_num: int, scale: float = 1.0) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        positions = np.arange(length + prompt_num + 1, dtype=np.float32) * np.float32(scale)
        return {
            "input_ids": rng.integers(0, 100, (batch, length)).astype(np.int32),
            "position_ids": np.tile(positions, (batch, 1)).astype(dtype),
            "head_dim_shape_tensor": np.zeros(head_dim, np.int32),
            "prompt_num": prompt_num,
        }

    return Case(f"{batch}x{length}-d{head_dim}-prompt{prompt_num}-{scale:g}", args, (float32,))


CASES = [_case(2, 4, 8, 0), _case(1, 2, 2, 0), _case(2, 4, 8, 3), _case(0, 4, 8, 0), _case(1, 0, 8, 2)]
CASES += [_case(1, 8, 128, 0, 20000.0)]


def _infer(
    input_ids: TensorSpec, position_ids: TensorSpec, head_dim_shape_tensor: TensorSpec, prompt_num: int
) -> list[TensorSpec]:
    batch, length = input_ids.shape
    return [TensorSpec((2, batch, 1, length, head_dim_shape_tensor.shape[0]), float32)]


@op(family="rotary", infer=_infer, cases=CASES, tolerance=TOLERANCE)
def fused_get_rotary_embedding(
    input_ids: In, position_ids: In, head_dim_shape_tensor: In, prompt_num: int, out: Out
) -> None:
    """out[0 | 1, b, 0, s, h] = cos | sin (position_ids[b, s + prompt_num] * 10000^(-(h - h % 2) / D)).

    input_ids [B, L]: only its shape is read; position_ids [B, >= L + prompt_num] float32;
    head_dim_shape_tensor: a vector whose length is the head size D (even); out [2, B, 1, L, D]
    float32, every value twice in a row. Angles in float64: a float32 angle is wrong beyond a few
    hundred positions. Specification ops-attention-kv §2.
    """
    (length, available), dim = (input_ids.shape[1], position_ids.shape[1]), len(head_dim_shape_tensor)
    name = "fused_get_rotary_embedding"
    check(dim % 2 == 0, name, "head_dim_shape_tensor", "an even length", dim)
    fits = 0 <= prompt_num <= available - length
    check(fits, name, "position_ids", f"at least {length} + prompt_num {prompt_num} columns", available)
    frequency = 10000.0 ** (-np.arange(0, dim, 2) / max(dim, 1))
    positions = position_ids[:, prompt_num : prompt_num + length].astype(np.float64)
    angle = np.repeat(positions[..., None] * frequency, 2, axis=-1)
    out[0, :, 0], out[1, :, 0] = np.cos(angle), np.sin(angle)
