"""dynamic_per_token_scaled_fp8_quant: rows to float8 with a scale each, into the caller's buffers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.ops.checks import check
from fd_core.ops.quantization._float8 import E4M3, LARGEST, e4m3
from fd_core.ops.schema import EXACT, Case, In, InOut, op


def _case(shape: tuple[int, ...], bound: float, *, spare: int = 0, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        x = rng.standard_normal(shape, np.float32) * np.exp2(rng.integers(-8, 8, (*shape[:-1], 1)))
        x.reshape(-1, shape[-1])[2:3] = 0
        rows = int(np.prod(shape[:-1])) + spare
        out = np.full((rows, shape[-1]) if spare else shape, 3, E4M3)
        scales = np.full(rows, 7, np.float32)
        return {"out": out, "input": x.astype(dtype), "scales": scales, "scale_ub": bound}

    name = f"{'x'.join(map(str, shape))}-ub{bound:g}" + f"-spare{spare}" * bool(spare)
    coupled = "rows beyond the input's are zeroed" * bool(spare)
    return Case(name, args, dt.FLOATS, bench, lambda size: (size + 1) * int(np.prod(shape)), 0, coupled)


CASES = [
    _case((4,), 0.0),
    _case((1,), 0.0),
    _case((0, 8), 0.0),
    _case((5, 17), 1.5),
    _case((3, 2, 40), 0.0),
]
CASES += [_case((3, 33), 0.0, spare=2), _case((512, 1024), 0.0, bench=True)]


@op(family="quantization", cases=CASES, tolerance=EXACT, rows=("out", "input", "scales"))
def dynamic_per_token_scaled_fp8_quant(out: InOut, input: In, scales: InOut, scale_ub: float = 0.0) -> None:
    """out [..., d] = e4m3(input / s), scales[t] = s = min(max |row t|, scale_ub) / 448, per row of d.

    scale_ub <= 0 bounds nothing. NaN counts as nothing in the maximum and stays NaN in out; a row with
    an infinity has scale infinity. A row whose scale is 0 (zeros, or values below 448 * 2^-150) has
    codes 0. e4m3: nearest even, saturating. input [..., d] float32, bfloat16 or float16 (one dimension:
    one row); out float8_e4m3fn of the same rank and last dimension; scales [rows] or [rows, 1] float32.
    Rows of out and scales beyond those of input become 0. Raises ValueError for shapes that do not fit,
    TypeError for other types. Source: specification ops-quant-moe §1.
    """
    depth = input.shape[-1]
    rows = input.reshape(-1, depth).astype(np.float32)
    codes, multipliers = out.reshape(-1, depth), scales.reshape(-1)
    name = "dynamic_per_token_scaled_fp8_quant"
    check(len(codes) >= len(rows), name, "out", f"at least {len(rows)} rows", len(codes))
    check(len(multipliers) >= len(rows), name, "scales", f"at least {len(rows)}", len(multipliers))
    codes[len(rows) :], multipliers[len(rows) :] = 0, 0
    amax = np.fmax.reduce(np.abs(rows), axis=1, initial=0)
    if scale_ub > 0:
        amax = np.minimum(amax, np.float32(scale_ub))
    scale = (amax / LARGEST).astype(np.float32)
    with np.errstate(invalid="ignore"):
        codes[: len(rows)] = e4m3(rows / np.where(scale == 0, np.float32(1), scale)[:, None])
    multipliers[: len(rows)] = scale
