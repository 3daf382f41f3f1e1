"""gptq_marlin_repack: row-packed 4- or 8-bit codes to tiles of 16 x 64 in the order tensor cores read."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec
from fd_core.ops.checks import check, check_range
from fd_core.ops.schema import EXACT, REQUIRED, Array, Case, In, Out, op

TILE_K, TILE_N = 16, 64
_SLOTS = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}


def _case(k: int, n: int, bits: int, permuted: bool, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        pack = 32 // bits
        words = rng.integers(-(2**31), 2**31, (k // pack, n)).astype(dtype)
        perm = rng.permutation(k).astype(np.int32) if permuted else np.empty(0, np.int32)
        return {"b_q_weight": words, "perm": perm, "size_k": k, "size_n": n, "num_bits": bits}

    return Case(
        f"{k}x{n}-{bits}bit" + "-perm" * permuted, args, (dt.int32,), bench, bytes=k * n * bits // 4
    )


CASES = [
    _case(k, n, bits, permuted)
    for k, n in ((0, 64), (16, 64), (64, 128), (128, 256))
    for bits in (4, 8)
    for permuted in (False, True)
]
CASES += [_case(1024, 1024, 4, False, bench=True)]


def _output(size_k: int, size_n: int, num_bits: int, **_: Any) -> list[TensorSpec]:
    return [TensorSpec((size_k // TILE_K, size_n * TILE_K * num_bits // 32), dt.int32)]


def _places(k: int, n: int, bits: int) -> tuple[Array, Array]:
    """Word and bit of every code [k, n]."""
    kk, nn = np.ogrid[:k, :n]
    tile = kk // TILE_K * (n // TILE_N) + nn // TILE_N
    row, warp, column = kk % TILE_K, nn % TILE_N // 16, nn % 16
    lane, i, half = column % 8 * 4 + row % 8 // 2, row % 2 + row // 8 * 2, column // 8
    order = np.argsort(_SLOTS[bits])
    if bits == 4:
        return tile * 128 + lane * 4 + warp, 4 * order[i + 4 * half]
    return tile * 256 + lane * 8 + warp * 2 + half, np.broadcast_to(8 * order[i], (k, n))


@op(family="quantization", infer=_output, cases=CASES, tolerance=EXACT)
def gptq_marlin_repack(
    b_q_weight: In, perm: In, size_k: int, size_n: int, num_bits: int, out: Out = REQUIRED
) -> None:
    """The unsigned codes of b_q_weight, unchanged, in Marlin's tiles of 16 k by 64 n.

    b_q_weight [size_k / pack, size_n] int32, pack = 32 / num_bits, code k at bits num_bits * (k % pack);
    perm int32 [size_k]: logical row k is source row perm[k], or [0]: none. num_bits 4 or 8. out int32
    [size_k / 16, size_n * 16 / pack]: inside a tile, with row r = k % 16, c = n % 16, lane =
    (c % 8) * 4 + r % 8 / 2, i = r % 2 + 2 (r / 8), half = c / 8, warp = n % 64 / 16: 4 bits: word
    lane * 4 + warp, slot = place of i + 4 half in 0 2 4 6 1 3 5 7; 8 bits: word lane * 8 + warp * 2 + half,
    slot = place of i in 0 2 1 3. Raises ValueError for size_k % 16, size_n % 64, other num_bits, shapes,
    and an index in perm outside [0, size_k); TypeError for other types. Source: specification
    ops-quant-moe §4.
    """
    name = "gptq_marlin_repack"
    check(num_bits in _SLOTS, name, "num_bits", "4 or 8", num_bits)
    check(size_k % TILE_K == 0, name, "size_k", "a multiple of 16", size_k)
    check(size_n % TILE_N == 0, name, "size_n", "a multiple of 64", size_n)
    pack = 32 // num_bits
    check(b_q_weight.shape == (size_k // pack, size_n), name, "b_q_weight", [size_k // pack, size_n],
          list(b_q_weight.shape))  # fmt: skip
    check(perm.shape in ((0,), (size_k,)), name, "perm", f"[0] or [{size_k}]", list(perm.shape))
    check_range(name, "perm", perm, 0, size_k)
    shifts = (np.arange(pack, dtype=np.uint32) * num_bits)[None, :, None]
    codes = b_q_weight.view(np.uint32)[:, None, :] >> shifts & np.uint32(2**num_bits - 1)
    codes = codes.reshape(size_k, size_n)
    codes = codes[perm] if perm.size else codes
    words, bits = _places(size_k, size_n, num_bits)
    flat = np.zeros(out.size, np.uint32)
    np.bitwise_or.at(flat, words.reshape(-1), (codes << bits.astype(np.uint32)).reshape(-1))
    out[...] = flat.view(np.int32).reshape(out.shape)
