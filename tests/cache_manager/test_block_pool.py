"""Block accounting: free + cached + owned = total, whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fd_core.engine import block_hash
from fd_core.engine.block_pool import BlockPool


def test_allocation_is_all_or_nothing() -> None:
    pool = BlockPool(4)
    assert pool.allocate(5) is None
    assert pool.available == 4
    blocks = pool.allocate(3)
    assert blocks is not None
    assert len(set(blocks)) == 3
    assert pool.owned == 3


def test_released_content_is_found_until_its_block_is_reused() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1) or []
    digest = block_hash.chain(block_hash.root(""), [1, 2])
    pool.remember(block, digest)
    pool.release([block])
    assert pool.lookup([digest]) == [block]
    assert pool.cached == 1
    pool.allocate(1)  # the block without content goes first
    assert pool.lookup([digest]) == [block]
    pool.allocate(1)
    assert pool.lookup([digest]) == []


def test_least_recently_released_content_is_reused_first() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(3) or []
    digests = [bytes([i]) * 16 for i in range(3)]
    for block, digest in zip(blocks, digests, strict=True):
        pool.remember(block, digest)
    for i in (1, 0, 2):
        pool.release([blocks[i]])
    pool.allocate(1)
    assert [bool(pool.lookup([d])) for d in digests] == [True, False, True]


def test_a_shared_block_lives_until_its_last_owner_goes() -> None:
    pool = BlockPool(1)
    blocks = pool.allocate(1) or []
    pool.acquire(blocks)
    pool.release(blocks)
    assert pool.available == 0
    pool.release(blocks)
    assert pool.available == 1
    with pytest.raises(RuntimeError, match="released more often"):
        pool.release(blocks)


def test_block_names_cover_the_whole_prefix_and_the_salt() -> None:
    a, b = block_hash.root(""), block_hash.root("tenant")
    assert block_hash.chain(a, [1, 2]) == block_hash.chain(a, [1, 2])
    names = {block_hash.chain(p, t) for p in (a, b, block_hash.chain(a, [0])) for t in ([1, 2], [2, 1])}
    assert len(names) == 6


class PoolMachine(RuleBasedStateMachine):
    """Random owners; the machine's own ledger says what the pool must report."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(8)
        self.owners: list[list[int]] = []
        self.names = 0

    @rule(count=st.integers(0, 9))
    def allocate(self, count: int) -> None:
        room = self.pool.available
        blocks = self.pool.allocate(count)
        assert (blocks is None) == (count > room)
        if blocks:
            self.owners.append(blocks)

    @rule(pick=st.integers(0, 20))
    def share(self, pick: int) -> None:
        if self.owners:
            blocks = self.owners[pick % len(self.owners)]
            self.pool.acquire(blocks)
            self.owners.append(list(blocks))

    @rule(pick=st.integers(0, 20))
    def release(self, pick: int) -> None:
        if self.owners:
            self.pool.release(self.owners.pop(pick % len(self.owners)))

    @rule(pick=st.integers(0, 20))
    def remember(self, pick: int) -> None:
        if self.owners:
            self.names += 1
            self.pool.remember(self.owners[pick % len(self.owners)][0], self.names.to_bytes(16, "big"))

    @rule(name=st.integers(1, 30))
    def hit(self, name: int) -> None:
        blocks = self.pool.lookup([name.to_bytes(16, "big")])
        if blocks:
            self.pool.acquire(blocks)
            self.owners.append(blocks)

    @invariant()
    def accounts_balance(self) -> None:
        owned = {block for blocks in self.owners for block in blocks}
        assert self.pool.owned == len(owned)
        assert self.pool.available + len(owned) == self.pool.total
        assert self.pool.cached <= self.pool.available


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
