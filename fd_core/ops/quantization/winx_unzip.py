"""winx_unzip: weights of about 2 and 2.5 bits, spread out to a float matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec
from fd_core.ops.checks import check
from fd_core.ops.schema import EXACT, REQUIRED, Array, Case, In, OptIn, Out, op

WINT2, WINT25 = "weight_only_int2", "weight_only_int2.5"
_TYPES = (dt.bfloat16, dt.float16)


def _wint2(e: int, k: int, n: int, rank: int, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        per_column = (e, n) if rank == 2 else (e, 1, n)
        sixteenths = rng.integers(-900, 900, (2, *per_column)).astype(np.float32) / 16
        return {
            "zipped_weight": rng.integers(0, 256, (e, k // 4, n)).astype(np.uint8),
            "local_scale": rng.integers(0, 256, (e, k // 128, n)).astype(np.uint8),
            "code_scale": sixteenths[0],  # products with bytes, and the sums, are exact
            "code_zp": sixteenths[1],
            "super_scale": rng.uniform(0.001, 0.01, per_column).astype(dtype),
            "quant_method": WINT2,
        }

    return Case(f"2-{e}x{k}x{n}-rank{rank}", args, _TYPES, bench, bytes=2 * e * k * n)


def _wint25(e: int, k: int, n: int, rank: int) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        per_column = (e, n) if rank == 2 else (e, 1, n)
        words = rng.integers(-(2**15), 2**15, (e, k * 10 // 64, n)).astype(np.int16)
        scale = rng.uniform(1e-6, 1e-5, per_column).astype(np.float32).astype(dtype)
        return {"zipped_weight": words, "local_scale": None, "code_scale": None, "code_zp": None,
                "super_scale": scale, "quant_method": WINT25}  # fmt: skip

    return Case(f"2.5-{e}x{k}x{n}-rank{rank}", args, _TYPES, bytes=2 * e * k * n)


CASES = [_wint2(1, 128, 128, 3), _wint2(2, 256, 40, 2), _wint2(3, 384, 3, 3), _wint2(0, 128, 8, 2)]
CASES += [_wint25(1, 128, 128, 3), _wint25(2, 64, 37, 2), _wint25(3, 192, 8, 3)]
CASES += [_wint2(8, 1024, 512, 2, bench=True)]


def _output(
    zipped_weight: TensorSpec, super_scale: TensorSpec | None, quant_method: str, **_: Any
) -> list[TensorSpec]:
    if super_scale is None:
        raise ValueError("winx_unzip.super_scale: want a scale per column, have None")
    experts, rows, columns = zipped_weight.shape
    depth = rows * 4 if quant_method == WINT2 else rows // 10 * 64
    return [TensorSpec((experts, depth, columns), super_scale.dtype)]


def _columns(op: str, name: str, value: Array | None, experts: int, columns: int) -> Array:
    """[E, N] or [E, 1, N] as float32 [E, 1, N]."""
    shapes = ((experts, columns), (experts, 1, columns))
    have = None if value is None else value.shape
    if value is None or have not in shapes:
        raise ValueError(f"{op}.{name}: want {list(shapes[0])} or {list(shapes[1])}, have {have}")
    return value.reshape(experts, 1, columns).astype(np.float32)


def _values2(zipped: Array, code_scale: Array, code_zp: Array) -> Array:
    codes = np.floor(zipped.astype(np.float32) * code_scale + code_zp + np.float32(0.5)).astype(np.int32)
    values = codes[:, :, None, :] >> np.array([9, 6, 3, 0])[None, None, :, None] & 63
    return np.asarray(values.reshape(len(zipped), 4 * zipped.shape[1], zipped.shape[2]) - 32)


def _scales2(local: Array, depth: int) -> Array:
    halves = np.stack([local >> 4, local & 15], axis=2).reshape(
        len(local), 2 * local.shape[1], local.shape[2]
    )
    return np.repeat(halves, 64, axis=1)[:, :depth].astype(np.float32)


def _parts25(zipped: Array) -> tuple[Array, Array]:
    experts, rows, columns = zipped.shape
    words = zipped.view(np.uint16).astype(np.int32).reshape(experts, rows // 10, 10, columns)
    shifts = np.array([13, 11, 9, 6, 4, 2, 0])[None, None, None, :, None]
    most = (words[:, :, :9, None] >> shifts & 7).reshape(experts, rows // 10, 63, columns)
    last = words[:, :, 9:] >> 13 & 7
    values = np.concatenate([most, last], axis=2) - 4
    local = np.broadcast_to(words[:, :, 9:] & 0x1FFF, values.shape)
    shape = (experts, rows // 10 * 64, columns)
    return values.reshape(shape), local.reshape(shape)


@op(family="quantization", infer=_output, cases=CASES, tolerance=EXACT)
def winx_unzip(
    zipped_weight: In,
    local_scale: OptIn = None,
    code_scale: OptIn = None,
    code_zp: OptIn = None,
    super_scale: OptIn = None,
    quant_method: str = WINT2,
    weight: Out = REQUIRED,
) -> None:
    """weight [E, K, N] in super_scale's type (bfloat16 or float16), from two compressed forms.

    "weight_only_int2": zipped_weight [E, K / 4, N] uint8. code = floor(byte * code_scale + code_zp + 0.5)
    in float32, to int32 (fused or not); row 4 r + j is ((code >> (9, 6, 3, 0)[j]) & 63) - 32. Its local
    scale is four bits of local_scale [E, K / 128, N] uint8, the high ones for even groups of 64 rows;
    weight = (local * super) * value, one rounding. K a multiple of 128; code_scale, code_zp [E, N] or
    [E, 1, N] float32.
    "weight_only_int2.5": zipped_weight [E, 10 K / 64, N] int16 (bits, unsigned). Of every ten rows, nine
    hold seven values ((z >> (13, 11, 9, 6, 4, 2, 0)[j]) & 7) - 4, fields overlapping as they do; the tenth
    holds the 64th value in its top three bits and the local scale in the others; weight = value * (local *
    super), one rounding. The other tensors are None. super_scale [E, N] or [E, 1, N] is required.

    Raises ValueError for other methods, missing tensors and shapes, TypeError for other types. Source:
    specification ops-quant-moe §4.
    """
    op_name = "winx_unzip"
    experts, rows, columns = zipped_weight.shape
    check(quant_method in (WINT2, WINT25), op_name, "quant_method", f"{WINT2} or {WINT25}", quant_method)
    multiple = 32 if quant_method == WINT2 else 10
    check(rows % multiple == 0, op_name, "zipped_weight", f"rows a multiple of {multiple}", rows)
    super_ = _columns(op_name, "super_scale", super_scale, experts, columns)
    if quant_method == WINT25:
        values, local = _parts25(zipped_weight)
        weight[...] = (values.astype(np.float32) * (local.astype(np.float32) * super_)).astype(weight.dtype)
        return
    want = (experts, rows // 32, columns)
    have = None if local_scale is None else local_scale.shape
    if local_scale is None or have != want:
        raise ValueError(f"{op_name}.local_scale: want {list(want)}, have {have}")
    codes = [_columns(op_name, n, v, experts, columns)
             for n, v in (("code_scale", code_scale), ("code_zp", code_zp))]  # fmt: skip
    values = _values2(zipped_weight, codes[0], codes[1]).astype(np.float32)
    weight[...] = (_scales2(local_scale, 4 * rows) * super_ * values).astype(weight.dtype)
