"""Philox4x32-10 (Salmon et al., SC 2011) in NumPy: the twin of csrc/include/fd/philox.h."""

from __future__ import annotations

from typing import Any

import numpy as np

U32 = np.ndarray[Any, np.dtype[np.uint32]]
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLY = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32_10(counter: Any, key: Any) -> U32:
    """Four 32-bit words for each counter [..., 4] under `key` [..., 2]."""
    c = np.asarray(counter, np.uint64)
    k = np.asarray(key, np.uint64)
    c0, c1, c2, c3 = (c[..., i] for i in range(4))
    k0, k1 = k[..., 0], k[..., 1]
    for _ in range(10):
        a, b = _MULTIPLY[0] * c0, _MULTIPLY[1] * c2
        c0, c1, c2, c3 = (b >> _SHIFT) ^ c1 ^ k0, b & _MASK, (a >> _SHIFT) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + np.uint64(_WEYL[0])) & _MASK, (k1 + np.uint64(_WEYL[1])) & _MASK
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def philox_bits(seed: int, position: int, stream: int = 0) -> int:
    """64 random bits of (seed, position, stream); each is taken modulo 2^64."""
    words = [value >> shift & 0xFFFFFFFF for value in (position, stream, seed) for shift in (0, 32)]
    low, high = (int(w) for w in philox4x32_10(words[:4], words[4:])[:2])
    return high << 32 | low


def scale_bits(bits: int, total: int) -> int:
    """floor(bits / 2^64 * total): uniform in [0, total)."""
    return bits * total >> 64
