"""Names for block contents: a chain of 128-bit hashes, the same in every process and run.

A block's name covers all tokens before it, so equal names mean equal prefixes. `salt` separates
tenants who must not learn from each other's cache hits.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b


def root(salt: str) -> bytes:
    return blake2b(salt.encode(), digest_size=16, person=b"fd-kv-block").digest()


def chain(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The name of the block that holds `tokens` after the content named `parent`."""
    return blake2b(parent + array("i", tokens).tobytes(), digest_size=16).digest()
