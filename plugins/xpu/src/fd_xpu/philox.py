"""Philox4x32-10 (Salmon et al., SC 2011) on the host: one 64-bit number per (seed, position, stream)."""

from __future__ import annotations

_MASK = 0xFFFFFFFF
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four 32-bit words of a 128-bit counter under a 64-bit key."""
    (a, b, c, d), (low, high) = counter, key
    for _ in range(10):
        left, right = _MULTIPLY[0] * a, _MULTIPLY[1] * c
        a, b, c, d = (right >> 32) ^ b ^ low, right & _MASK, (left >> 32) ^ d ^ high, left & _MASK
        low, high = (low + _WEYL[0]) & _MASK, (high + _WEYL[1]) & _MASK
    return a, b, c, d


def bits(seed: int, position: int, stream: int = 0) -> int:
    """The first two words; seed and position are taken modulo 2^64, stream is the counter's upper half."""
    counter = (position & _MASK, position >> 32 & _MASK, stream & _MASK, stream >> 32 & _MASK)
    low, high, _, _ = philox(counter, (seed & _MASK, seed >> 32 & _MASK))
    return high << 32 | low


def scaled(number: int, total: int) -> int:
    """floor(number / 2^64 * total)."""
    return number * total >> 64
