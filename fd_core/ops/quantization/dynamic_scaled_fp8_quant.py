"""dynamic_scaled_fp8_quant: a tensor to float8 under one scale made from its largest magnitude."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.ops.checks import check
from fd_core.ops.quantization._float8 import E4M3, LARGEST, e4m3, inverse
from fd_core.ops.schema import EXACT, Case, In, InOut, op


def _case(shape: tuple[int, ...], floor: float = 0.0, size: float = 4.0, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        x = (size * rng.standard_normal(shape, np.float32)).astype(dtype)
        return {"out": np.full(shape, 3, E4M3), "input": x, "scale": np.array([floor], np.float32)}

    count = int(np.prod(shape))
    name = f"{'x'.join(map(str, shape))}-from{floor:g}-x{size:g}"
    return Case(name, args, dt.FLOATS, bench, lambda width: (2 * width + 1) * count)


CASES = [_case((0, 8)), _case((5,)), _case((3, 37)), _case((2, 3, 40), floor=0.5), _case((4, 64), size=0.0)]
CASES += [_case((2, 70), floor=-1.0), _case((512, 1024), bench=True)]


@op(family="quantization", cases=CASES, tolerance=EXACT)
def dynamic_scaled_fp8_quant(out: InOut, input: In, scale: InOut) -> None:
    """scale[0] = max(scale[0], max |input| / 448), then out = e4m3(input * (1 / scale[0])).

    The value of scale on entry is a floor: callers give 0. NaN counts as nothing in the maximum and
    stays NaN in out; an infinity makes the scale infinite. Where 1 / scale would be infinite it is the
    largest float, so that zeros have codes 0. e4m3: nearest even, saturating. input of any shape,
    float32, bfloat16 or float16; out of its shape, float8_e4m3fn; scale [1] float32. Raises ValueError
    for shapes that do not fit, TypeError for other types. Source: specification ops-quant-moe §1.
    """
    check(scale.size == 1, "dynamic_scaled_fp8_quant", "scale", "one element", list(scale.shape))
    wide = input.astype(np.float32)
    amax = np.fmax.reduce(np.abs(wide), axis=None, initial=0)
    value = np.fmax(scale.reshape(-1)[0], np.float32(amax) / LARGEST)
    scale[...] = value
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = e4m3(wide * inverse(value))
