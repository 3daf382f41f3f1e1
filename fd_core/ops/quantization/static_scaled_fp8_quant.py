"""static_scaled_fp8_quant: a tensor to float8 under a scale that is given."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.ops.checks import check, check_data
from fd_core.ops.quantization._float8 import E4M3, e4m3, inverse
from fd_core.ops.schema import EXACT, Case, In, InOut, op


def _case(shape: tuple[int, ...], scale: float, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        x = (4 * rng.standard_normal(shape, np.float32)).astype(dtype)
        return {"out": np.full(shape, 3, E4M3), "input": x, "scale": np.array([scale], np.float32)}

    size = int(np.prod(shape))
    name = f"{'x'.join(map(str, shape))}-{scale:g}"
    return Case(name, args, dt.FLOATS, bench, lambda width: (width + 1) * size)


CASES = [_case((0, 8), 1.0), _case((5,), 0.25), _case((3, 37), 0.01), _case((2, 3, 40), 1e-40)]
CASES += [_case((512, 1024), 0.02, bench=True)]


@op(family="quantization", cases=CASES, tolerance=EXACT, rows=("out", "input"))
def static_scaled_fp8_quant(out: InOut, input: In, scale: In) -> None:
    """out = e4m3(input * (1 / scale[0])), nearest even, saturating, NaN kept.

    The reciprocal is taken first, in float32; where it would be infinite it is the largest float. input
    of any shape, float32, bfloat16 or float16; out of its shape, float8_e4m3fn; scale [1] float32, the
    multiplier that brings the codes back. Raises ValueError for shapes that do not fit and (devices:
    in debug mode) for a scale that is not above 0, TypeError for other types. Source: specification
    ops-quant-moe §1.
    """
    check(scale.size == 1, "static_scaled_fp8_quant", "scale", "one element", list(scale.shape))
    value = scale.reshape(-1)[0]
    check_data(bool(value > 0), "static_scaled_fp8_quant", "scale", "a number above 0", value)
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = e4m3(input.astype(np.float32) * inverse(value))
