"""Block accounting: every KV block is free, cached (reusable content, no owner) or owned.

free + cached + owned = total after every call. Content stays addressable by its hash until the block
is handed out again, least recently released first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Blocks 0..total-1 with reference counts. Shared blocks (prefix hits, forks) count each owner."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._refs = [0] * total
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._free = list(range(total - 1, -1, -1))  # without content, the next one last
        self._cached: OrderedDict[int, None] = OrderedDict()  # with content, the next one first

    @property
    def available(self) -> int:
        """Blocks that `allocate` can hand out: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def cached(self) -> int:
        """Blocks without an owner whose content can still be found."""
        return len(self._cached)

    @property
    def owned(self) -> int:
        return self.total - self.available

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one owner each, or None and no change when there are too few."""
        if count > self.available:
            return None
        blocks = [self._next() for _ in range(count)]
        for block in blocks:
            self._refs[block] = 1
        return blocks

    def _next(self) -> int:
        if self._free:
            return self._free.pop()
        block, _ = self._cached.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        return block

    def acquire(self, blocks: Iterable[int]) -> None:
        """One more owner for each block (found by `lookup`, or another sequence's)."""
        for block in blocks:
            self._refs[block] += 1
            self._cached.pop(block, None)

    def release(self, blocks: Sequence[int]) -> None:
        """One owner less. The tail of a sequence is reused before its head: heads are shared more."""
        for block in reversed(blocks):
            self._refs[block] -= 1
            if self._refs[block] < 0:
                raise RuntimeError(f"block {block} was released more often than acquired")
            if self._refs[block] == 0 and block in self._hash_of:
                self._cached[block] = None
            elif self._refs[block] == 0:
                self._free.append(block)

    def lookup(self, hashes: Iterable[bytes]) -> list[int]:
        """Blocks of the longest known prefix of `hashes`; they are not acquired."""
        found: list[int] = []
        for digest in hashes:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def remember(self, block: int, digest: bytes) -> None:
        """`block` now holds the complete content named `digest`; the first block to hold it wins."""
        if digest not in self._block_of and block not in self._hash_of:
            self._block_of[digest] = block
            self._hash_of[block] = digest

    def clear_cache(self) -> None:
        """Forget all content (owned blocks keep their owners)."""
        self._free += self._cached
        self._cached.clear()
        self._hash_of.clear()
        self._block_of.clear()
