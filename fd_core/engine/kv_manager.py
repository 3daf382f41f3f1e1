"""Which blocks hold which sequence: growth, prefix hits, forks, swap to host and back."""

from __future__ import annotations

from dataclasses import dataclass, field

from fd_core.engine.block_pool import BlockPool
from fd_core.engine.sequence import Sequence


@dataclass(slots=True)
class BlockMoves:
    """Copies the runner makes before the step: (device, host) pairs out, (host, device) pairs in."""

    swap_out: list[tuple[int, int]] = field(default_factory=list)
    swap_in: list[tuple[int, int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.swap_out or self.swap_in)


class KVManager:
    """Blocks of all sequences over a device pool and an optional host pool."""

    def __init__(self, blocks: int, block_size: int, *, host_blocks: int = 0, prefix: bool = True) -> None:
        self.pool = BlockPool(blocks)
        self.host = BlockPool(host_blocks)
        self.block_size = block_size
        self.prefix = prefix
        self.queries = 0
        self.hits = 0

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def grow(self, seq: Sequence, tokens: int) -> bool:
        """Give `seq` blocks for its first `tokens` tokens; False and no change when there are too few."""
        missing = self.blocks_for(tokens) - len(seq.blocks)
        if missing <= 0:
            return True
        blocks = self.pool.allocate(missing)
        if blocks is None:
            return False
        seq.blocks += blocks
        return True

    def match_prefix(self, seq: Sequence) -> None:
        """Start a fresh `seq` from cached blocks. At least one token is always left to compute."""
        if not self.prefix or seq.blocks or seq.params.prompt_logprobs is not None:
            return
        usable = (len(seq.tokens) - 1) // self.block_size
        seq.extend_hashes(self.block_size, usable * self.block_size)
        blocks = self.pool.lookup(seq.hashes[:usable])
        self.queries += len(seq.tokens)
        self.hits += len(blocks) * self.block_size
        self._start_from(seq, blocks)

    def fork_prompt(self, seq: Sequence, source: Sequence) -> None:
        """Start `seq` on the complete prompt blocks that its sibling `source` has computed."""
        usable = min(seq.num_prompt - 1, source.num_computed) // self.block_size
        self._start_from(seq, source.blocks[:usable])

    def _start_from(self, seq: Sequence, blocks: list[int]) -> None:
        self.pool.acquire(blocks)
        seq.blocks = list(blocks)
        seq.num_computed = len(blocks) * self.block_size
        seq.num_remembered = len(blocks)
        seq.cached_tokens = max(seq.cached_tokens, min(seq.num_computed, seq.num_prompt))

    def computed(self, seq: Sequence, tokens: int) -> None:
        """The first `tokens` tokens of `seq` are in the cache: complete blocks become findable."""
        complete = tokens // self.block_size
        if not self.prefix or complete <= seq.num_remembered:
            return
        seq.extend_hashes(self.block_size, complete * self.block_size)
        for i in range(seq.num_remembered, complete):
            self.pool.remember(seq.blocks[i], seq.hashes[i])
        seq.num_remembered = complete

    def free(self, seq: Sequence) -> None:
        """Take back everything `seq` holds, wherever it is. Idempotent."""
        self.pool.release(seq.blocks)
        self.host.release(seq.host_blocks)
        seq.blocks, seq.host_blocks, seq.num_remembered = [], [], 0

    def swap_out(self, seq: Sequence, moves: BlockMoves) -> bool:
        """Move `seq` to the host pool; False and no change when it has no room."""
        used = self.blocks_for(seq.num_computed)
        host = self.host.allocate(used) if used else None
        if host is None:
            return False
        moves.swap_out += zip(seq.blocks[:used], host, strict=True)
        self.pool.release(seq.blocks)
        seq.blocks, seq.host_blocks, seq.num_remembered = [], host, 0
        return True

    def swap_in(self, seq: Sequence, moves: BlockMoves) -> bool:
        """Bring a swapped `seq` back; False and no change when the device has no room."""
        blocks = self.pool.allocate(len(seq.host_blocks))
        if blocks is None:
            return False
        moves.swap_in += zip(seq.host_blocks, blocks, strict=True)
        self.host.release(seq.host_blocks)
        seq.blocks, seq.host_blocks = blocks, []
        return True
