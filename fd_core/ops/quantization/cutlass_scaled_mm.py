"""cutlass_scaled_mm: products of int8 or float8 matrices with scales per tensor, row, column or block."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.ops.checks import check
from fd_core.ops.quantization._float8 import GROUP
from fd_core.ops.schema import Array, Case, In, InOut, OptIn, Tolerance, op

TOLERANCE = Tolerance(
    "int8 sums are exact, float8 sums are float32 chains of K <= 1024 products near 1 in all (sqrt(K) * "
    "2^-24, which cancellation leaves absolute), three more float32 operations, then one rounding; where a "
    "device's float8 tensor cores may add (the positive case), nothing cancels, and what they drop (2^-13 "
    "of the largest of 32 products, at each) is small beside bfloat16's rounding",
    {"bfloat16": (2**-7, 2e-5), "float16": (2**-10, 2e-5)},
)
_KINDS = (dt.int8, dt.float8_e4m3fn)
_COUPLED = "sums of float8 in an order that depends on the number of rows"


def _values(rng: np.random.Generator, shape: tuple[int, int], kind: np.dtype[Any], positive: bool) -> Array:
    if kind == np.int8:
        return rng.integers(-128, 128, shape).astype(np.int8)
    values = 64 * rng.standard_normal(shape, np.float32)
    return (np.abs(values) if positive else values).astype(kind)


def _case(
    m: int,
    n: int,
    k: int,
    scales: str,
    *,
    half: bool = False,
    bias: bool = False,
    bench: bool = False,
    positive: bool = False,
    kinds: tuple[dt.DType, ...] = _KINDS,
) -> Case:
    """`positive`: enough float8 products of one sign for a library's kernels."""

    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        out = np.dtype(np.float16) if half else dt.bfloat16.numpy()
        blocks = -(-k // GROUP)
        shapes = {
            "tensor": ((1,), (1,)),
            "row": ((m, 1), (n, 1)),
            "mixed": ((m,), (1,)),
            "block": ((m, blocks), (blocks, -(-n // GROUP))),
        }[scales]
        size = 1 / (64 * max(k, 1) ** 0.25)
        a_scales, b_scales = (rng.uniform(size / 2, size, s).astype(np.float32) for s in shapes)
        return {
            "c": np.full((m, n), 3, out),
            "a": _values(rng, (m, k), dtype, positive),
            "b": _values(rng, (n, k), dtype, positive),
            "a_scales": a_scales,
            "b_scales": b_scales,
            "bias": rng.standard_normal(n).astype(out) if bias else None,
        }

    kinds = _KINDS[1:] if scales == "block" else kinds
    name = f"{m}x{n}x{k}-{scales}" + "-half" * half + "-bias" * bias + "-positive" * positive
    return Case(name, args, kinds, bench, n * k, 2 * m * n * k, _COUPLED * positive)


CASES = [
    _case(32, 1024, 512, "row", bias=True),
    _case(17, 48, 208, "row", half=True),
    _case(3, 32, 16, "mixed", bias=True),
    _case(5, 16, 1024, "tensor"),
    _case(0, 16, 64, "row"),
    _case(7, 272, 400, "block"),
    _case(4, 128, 256, "block", half=True, bias=True),
    _case(8, 1024, 1024, "row", bench=True),
    _case(512, 1024, 1024, "row", bench=True, kinds=_KINDS[:1]),
    _case(512, 1024, 1024, "row", bench=True, positive=True, kinds=_KINDS[1:]),
]


def _is_block(a_scales: Array, b_scales: Array, m: int, n: int) -> bool:
    per_row = a_scales.size in (1, m) and b_scales.size in (1, n)
    return not per_row and a_scales.ndim == 2 and b_scales.ndim == 2


def _along(op: str, name: str, scales: Array, count: int) -> Array:
    fits = scales.shape in ((count,), (count, 1)) or scales.size == 1
    check(fits, op, name, f"1, [{count}] or [{count}, 1] scales", list(scales.shape))
    return np.broadcast_to(scales.reshape(-1), (count,)) if scales.size == 1 else scales.reshape(-1)


def _block_product(a: Array, b: Array, a_scales: Array, b_scales: Array) -> Array:
    total = np.zeros((len(a), len(b)))
    for g in range(a_scales.shape[1]):
        part = slice(g * GROUP, (g + 1) * GROUP)
        columns = np.repeat(b_scales[g].astype(np.float64), GROUP)[: len(b)]
        total += (a[:, part] @ b[:, part].T) * a_scales[:, g : g + 1] * columns
    return total


@op(family="quantization", cases=CASES, tolerance=TOLERANCE, rows=("c", "a", "a_scales"))
def cutlass_scaled_mm(c: InOut, a: In, b: In, a_scales: In, b_scales: In, bias: OptIn = None) -> None:
    """c [M, N] = a [M, K] @ b [N, K]^T with scales that bring the codes back, + bias; one rounding.

    a, b int8 or float8_e4m3fn, both alike; c bfloat16 or float16; bias [N] of c's type. Scales are
    float32. Per tensor, row or column: a_scales of 1 or M elements ([M] or [M, 1]), b_scales of 1 or N:
    c = a_s[m] * (b_s[n] * sum) + bias[n], the sum exact (int8, in int32: K at most 131,072) or float32.
    Per block, float8 only: a_scales [M, ceil(K / 128)] and b_scales [ceil(K / 128), ceil(N / 128)] (k
    blocks first): c = sum over blocks of a_s * b_s * (the block's sum), and bias is added as well (the
    original leaves that open). Where both readings fit (K <= 128), it is the first. c is only written.
    A row's result depends on no other row, but that sums of many float8 rows may be a library's, whose
    order depends on their number. Raises ValueError for K or N that are no multiples of 16 and
    for shapes that do not fit, TypeError for other types. Source: specification ops-quant-moe §3.
    """
    name = "cutlass_scaled_mm"
    (m, k), n = a.shape, b.shape[0]
    check(b.shape[1] == k, name, "b", f"{k} columns", list(b.shape))
    check(c.shape == (m, n), name, "c", [m, n], list(c.shape))
    check(k % 16 == 0, name, "a", "K a multiple of 16", k)
    check(n % 16 == 0, name, "b", "N a multiple of 16", n)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    if _is_block(a_scales, b_scales, m, n):
        blocks = -(-k // GROUP)
        check(a.dtype != np.int8, name, "a_scales", "per row with int8", list(a_scales.shape))
        check(a_scales.shape == (m, blocks), name, "a_scales", [m, blocks], list(a_scales.shape))
        want = (blocks, -(-n // GROUP))
        check(b_scales.shape == want, name, "b_scales", list(want), list(b_scales.shape))
        total = _block_product(wide_a, wide_b, a_scales, b_scales)
    else:
        rows, columns = _along(name, "a_scales", a_scales, m), _along(name, "b_scales", b_scales, n)
        total = (wide_a @ wide_b.T) * rows.astype(np.float64)[:, None] * columns.astype(np.float64)
    if bias is not None:
        check(bias.shape == (n,), name, "bias", [n], list(bias.shape))
        total = total + bias.astype(np.float64)
    c[...] = total.astype(np.float32).astype(c.dtype)
