"""From a step plan to the tensors the model reads: per-request slots, compacted by an index map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fd_core.api.attention import AttentionBatch
from fd_core.api.dtype import int32, int64
from fd_core.api.platform import Platform
from fd_core.api.tensor import Tensor
from fd_core.engine.buffers import TwinBuffer
from fd_core.engine.scheduler import Scheduled
from fd_core.engine.sequence import Sequence

Array = np.ndarray[Any, Any]


class Slots:
    """Host state that outlives a step: one row per running sequence, found by `Sequence.slot`.

    Rows are written when something changed (a token, a block), never rebuilt.
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, max_blocks: int) -> None:
        self.token_ids = np.zeros((max_num_seqs, max_model_len), np.int32)
        self.block_table = np.full((max_num_seqs, max_blocks), -1, np.int32)
        self._num_blocks = [0] * max_num_seqs
        self._free = list(range(max_num_seqs - 1, -1, -1))

    def sync(self, seq: Sequence) -> None:
        """Give `seq` a slot if it has none, and write the blocks it has gained."""
        if seq.slot < 0:
            seq.slot = self._free.pop()
            self._num_blocks[seq.slot] = 0
            self.token_ids[seq.slot, : len(seq.tokens)] = seq.tokens
        known = self._num_blocks[seq.slot]
        if known < len(seq.blocks):
            self.block_table[seq.slot, known : len(seq.blocks)] = seq.blocks[known:]
            self._num_blocks[seq.slot] = len(seq.blocks)

    def append(self, seq: Sequence, token: int) -> None:
        """The token just sampled, at the position it was appended to."""
        self.token_ids[seq.slot, len(seq.tokens) - 1] = token

    def release(self, seq: Sequence) -> None:
        """Idempotent; the row's stale blocks are wiped so that a bug cannot read them."""
        if seq.slot >= 0:
            self.block_table[seq.slot] = -1
            self._free.append(seq.slot)
            seq.slot = -1


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What one model call takes. `logits_indices` [rows]: packed tokens whose logits are wanted."""

    input_ids: Tensor  # [tokens] int32
    positions: Tensor  # [tokens] int32
    batch: AttentionBatch
    logits_indices: Tensor  # [rows] int32


class InputBuilder:
    """Fills the persistent buffers; addresses are stable, so a step may be captured."""

    def __init__(
        self, platform: Platform, slots: Slots, block_size: int, max_num_seqs: int, max_tokens: int
    ) -> None:
        self.slots = slots
        self.block_size = block_size
        self.input_ids = TwinBuffer(platform, (max_tokens,), int32)
        self.positions = TwinBuffer(platform, (max_tokens,), int32)
        self.slot_mapping = TwinBuffer(platform, (max_tokens,), int64, fill=-1)
        self.cu_seqlens_q = TwinBuffer(platform, (max_num_seqs + 1,), int32)
        self.seq_lens = TwinBuffer(platform, (max_num_seqs,), int32)
        self.block_table = TwinBuffer(platform, (max_num_seqs, slots.block_table.shape[1]), int32, fill=-1)
        self.logits_indices = TwinBuffer(platform, (max_num_seqs,), int32)

    def build(self, items: list[Scheduled], pad_to: int = 0) -> StepInputs:
        """Rows in the order of `items`. `pad_to`: for a step of one token each, the rows to fill up to
        with padding; shapes and host values then depend on it alone, so that the step can be captured."""
        rows = np.array([item.seq.slot for item in items])  # the index map: batch row -> slot
        starts = np.array([item.seq.num_computed for item in items], np.int64)
        counts = np.array([item.count for item in items], np.int64)
        ends = self._sequence_arrays(starts, counts)
        self._token_arrays(rows, starts, counts, ends)
        wanted = [end - 1 for end, item in zip(ends.tolist(), items, strict=True) if item.completes]
        self.logits_indices.host[: len(wanted)] = wanted
        batch = self._padded_batch(rows, pad_to) if pad_to else self._batch(rows, starts, counts)
        return StepInputs(
            self.input_ids.upload(batch.num_tokens),
            self.positions.upload(batch.num_tokens),
            batch,
            self.logits_indices.upload(len(wanted)),
        )

    def _sequence_arrays(self, starts: Array, counts: Array) -> Array:
        ends = np.cumsum(counts)
        n = len(counts)
        self.cu_seqlens_q.host[0] = 0
        self.cu_seqlens_q.host[1 : n + 1] = ends
        self.seq_lens.host[:n] = starts + counts
        return ends

    def _token_arrays(self, rows: Array, starts: Array, counts: Array, ends: Array) -> None:
        total = int(ends[-1])
        seq_of = np.repeat(np.arange(len(counts)), counts)  # batch row of each packed token
        positions = np.arange(total) - np.repeat(ends - counts, counts) + starts[seq_of]
        slot_of = rows[seq_of]
        blocks = self.slots.block_table[slot_of, positions // self.block_size].astype(np.int64)
        self.input_ids.host[:total] = self.slots.token_ids[slot_of, positions]
        self.positions.host[:total] = positions
        self.slot_mapping.host[:total] = blocks * self.block_size + positions % self.block_size

    def _batch(self, rows: Array, starts: Array, counts: Array) -> AttentionBatch:
        longest = int((starts + counts).max())
        width = -(-longest // self.block_size)
        self._fill_table(rows, len(rows), width)
        return self._views(len(rows), int(counts.sum()), width, int(counts.max()), longest)

    def _padded_batch(self, rows: Array, size: int) -> AttentionBatch:
        """Padding rows have no query and write nothing; the table has its full width."""
        n, width = len(rows), self.slots.block_table.shape[1]
        self.input_ids.host[n:size] = 0
        self.positions.host[n:size] = 0
        self.slot_mapping.host[n:size] = -1
        self.cu_seqlens_q.host[n + 1 : size + 1] = n
        self.seq_lens.host[n:size] = 0
        self._fill_table(rows, size, width)
        return self._views(size, size, width, 1, width * self.block_size)

    def _fill_table(self, rows: Array, size: int, width: int) -> None:
        table = self.block_table.host.reshape(-1)[: size * width].reshape(size, width)
        table[: len(rows)] = self.slots.block_table[rows, :width]
        table[len(rows) :] = -1
        self.block_table.upload(size)

    def _views(self, n: int, total: int, width: int, max_query: int, longest: int) -> AttentionBatch:
        return AttentionBatch(
            num_tokens=total,
            num_seqs=n,
            cu_seqlens_q=self.cu_seqlens_q.upload(n + 1),
            seq_lens=self.seq_lens.upload(n),
            block_table=self.block_table.block(n, width),
            slot_mapping=self.slot_mapping.upload(total),
            max_query_len=max_query,
            max_seq_len=longest,
        )
