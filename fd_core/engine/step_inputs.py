"""From a step plan to the tensors the model reads: per-request slots, compacted by an index map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fd_core.api.attention import AttentionBatch
from fd_core.api.dtype import int32, int64
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.engine.buffers import Field, Layout, Pack, aligned
from fd_core.engine.scheduler import Scheduled
from fd_core.engine.sequence import Sequence
from fd_core.engine.transit import Transit
from fd_core.layers.buffers import Buffer

Array = np.ndarray[Any, Any]


class Slots:
    """Host state that outlives a step: one row per running sequence, found by `Sequence.slot`.

    Rows are written when something changed (a token, a block), never rebuilt. `touched`: slots whose
    blocks have changed since somebody cleared it.
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, max_blocks: int) -> None:
        self.token_ids = np.zeros((max_num_seqs, max_model_len), np.int32)
        self.block_table = np.full((max_num_seqs, max_blocks), -1, np.int32)
        self.touched: set[int] = set()
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
            self.touched.add(seq.slot)

    def append(self, seq: Sequence, token: int) -> None:
        """The token that has been appended, where `seq` has a slot (`sync` writes what others gained)."""
        if seq.slot >= 0:
            self.token_ids[seq.slot, len(seq.tokens) - 1] = token

    def release(self, seq: Sequence) -> None:
        """Idempotent; the row's stale blocks are wiped so that a bug cannot read them."""
        if seq.slot >= 0:
            self.block_table[seq.slot] = -1
            self.touched.add(seq.slot)
            self._free.append(seq.slot)
            seq.slot = -1


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What one model call takes. `logits_indices` [rows]: packed tokens whose logits are wanted.

    `token_source` [tokens] int32, where tokens of the step before may still be on the device alone:
    `input_ids` must first be gathered from `token_table` [sampled rows, then this step's ids] by it.
    """

    input_ids: Tensor  # [tokens] int64
    positions: Tensor  # [tokens] int32
    batch: AttentionBatch
    logits_indices: Tensor  # [rows] int32
    token_table: Tensor | None = None
    token_source: Tensor | None = None


class InputBuilder:
    """Fills one persistent buffer, sent by one copy. A shape's arrays lie at the same addresses each
    time, so a step may be captured.

    `sampled`: where the sampler writes the tokens of a step, row by row. With `lookahead` the next step
    takes them from there.
    """

    def __init__(
        self,
        transit: Transit,
        slots: Slots,
        block_size: int,
        max_num_seqs: int,
        max_tokens: int,
        lookahead: bool = False,
    ) -> None:
        self.transit = transit
        self.slots = slots
        self.block_size = block_size
        self._offset = aligned(max_num_seqs * int64.itemsize) // int64.itemsize  # of `ids` in the table
        widest = _fields(max_tokens, max_num_seqs, slots.block_table.shape[1])
        nbytes = sum(aligned(TensorSpec(shape, kind).nbytes) for _, shape, kind in widest)
        self._pack = Pack(transit, nbytes, front=max_num_seqs * int64.itemsize)
        twin = self._pack.twin
        self.sampled = Buffer(twin.on_device(0, (max_num_seqs,), int64))
        self._table = Buffer(twin.on_device(0, (self._offset + max_tokens,), int64))
        self._ids: Buffer | None = None
        if lookahead:
            self._ids = Buffer.empty(transit.platform, (max_tokens,), int64)
        self._sent_table: tuple[Layout, bytes] | None = None  # shape and index map of the last step

    def build(self, items: list[Scheduled], pad_to: int = 0) -> StepInputs:
        """Rows in the order of `items`. `pad_to`: for a step of one token each, the rows to fill up to
        with padding; shapes and host values then depend on it alone, so that the step can be captured."""
        rows = np.array([item.seq.slot for item in items], np.int64)  # the index map: batch row -> slot
        starts = np.array([item.start for item in items], np.int64)
        counts = np.array([item.count for item in items], np.int64)
        lens = starts + counts
        longest = int(lens.max()) if items else 0
        width = self.slots.block_table.shape[1] if pad_to else -(-longest // self.block_size)
        total = int(counts.sum())
        layout = self._layout(pad_to or total, pad_to or len(items), width)
        ends = np.cumsum(counts)
        self._sequence_arrays(layout.host, lens, ends)
        self._token_arrays(layout.host, rows, starts, counts, ends)
        self._sources(layout.host["token_source"], items, ends)
        wanted = self._wanted(layout, items, ends)
        self._send(layout, rows)
        if pad_to:
            return self._inputs(layout, wanted, 1, width * self.block_size)
        return self._inputs(layout, wanted, int(counts.max()), longest)

    def _layout(self, tokens: int, rows: int, width: int) -> Layout:
        key = (tokens, rows, width)
        return self._pack.layout(key) or self._pack.define(key, _fields(*key))

    def _sequence_arrays(self, host: dict[str, Array], lens: Array, ends: Array) -> None:
        n = len(lens)
        starts, seq_lens = host["cu_seqlens_q"], host["seq_lens"]
        starts[0] = 0
        starts[1 : n + 1] = ends
        starts[n + 1 :] = ends[-1] if n else 0
        seq_lens[:n] = lens
        seq_lens[n:] = 0

    def _token_arrays(
        self, host: dict[str, Array], rows: Array, starts: Array, counts: Array, ends: Array
    ) -> None:
        """Padding tokens write nothing."""
        total = int(ends[-1]) if len(ends) else 0
        if total == len(rows):
            slot_of, positions = rows, starts
        else:
            slot_of = np.repeat(rows, counts)
            positions = np.arange(total) + np.repeat(starts - ends + counts, counts)
        which = positions // self.block_size
        blocks = self.slots.block_table[slot_of, which].astype(np.int64)
        ids, places, mapping = host["ids"], host["positions"], host["slot_mapping"]
        ids[:total] = self.slots.token_ids[slot_of, positions]
        places[:total] = positions
        mapping[:total] = (blocks - which) * self.block_size + positions
        ids[total:] = 0
        places[total:] = 0
        mapping[total:] = -1

    def _sources(self, source: Array, items: list[Scheduled], ends: Array) -> None:
        """Every token from this step's ids, but those that only the device knows."""
        if self._ids is None:
            return
        source[:] = _COUNT[: source.size] if source.size <= _COUNT.size else np.arange(source.size)
        source += self._offset
        for i, item in enumerate(items):
            if item.seq.num_unread:
                source[ends[i] - 1] = item.seq.unread_row

    def _wanted(self, layout: Layout, items: list[Scheduled], ends: Array) -> Tensor:
        indices = layout.host["logits_indices"]
        wanted = [end - 1 for end, item in zip(ends.tolist(), items, strict=True) if item.completes]
        indices[: len(wanted)] = wanted
        view = layout.device["logits_indices"]
        return view if len(wanted) == view.shape[0] else view.slice(0, len(wanted))

    def _send(self, layout: Layout, rows: Array) -> None:
        """The block table lies last and goes along only as far as it differs from what was sent."""
        touched, table = self._touched(layout, rows), layout.host["block_table"]
        self._sent_table = None
        if touched is None or (touched and table.nbytes <= _SMALL_TABLE):
            table[: len(rows)] = self.slots.block_table[rows, : table.shape[1]]
            table[len(rows) :] = -1
            self._pack.send(layout)
        else:
            self._pack.send(layout, before="block_table")
            for row in touched:
                table[row] = self.slots.block_table[rows[row], : table.shape[1]]
                self._pack.send_row(layout, "block_table", row)
        self._sent_table = (layout, rows.tobytes())
        self.slots.touched.clear()

    def _touched(self, layout: Layout, rows: Array) -> list[int] | None:
        """Rows whose blocks have changed since the last step, if it held the same sequences; else None."""
        if self._sent_table is None or self._sent_table != (layout, rows.tobytes()):
            return None
        touched = self.slots.touched
        changed = [i for i, slot in enumerate(rows.tolist()) if slot in touched] if touched else []
        return changed if len(changed) <= _FEW_ROWS else None

    def _inputs(self, layout: Layout, wanted: Tensor, max_query: int, longest: int) -> StepInputs:
        device = layout.device
        tokens, rows = device["ids"].shape[0], device["seq_lens"].shape[0]
        batch = AttentionBatch(
            num_tokens=tokens,
            num_seqs=rows,
            cu_seqlens_q=device["cu_seqlens_q"],
            seq_lens=device["seq_lens"],
            block_table=device["block_table"],
            slot_mapping=device["slot_mapping"],
            max_query_len=max_query,
            max_seq_len=longest,
        )
        if self._ids is None:
            return StepInputs(device["ids"], device["positions"], batch, wanted)
        table = self._table.rows(self._offset + tokens)
        ids = self._ids.rows(tokens)
        return StepInputs(ids, device["positions"], batch, wanted, table, device["token_source"])


_COUNT = np.arange(1024, dtype=np.int32)

#: A larger block table, bytes, is sent row by row while few rows change: each copy costs microseconds.
_SMALL_TABLE = 1 << 16
_FEW_ROWS = 8


def _fields(tokens: int, rows: int, width: int) -> list[Field]:
    """The arrays of a step, `ids` first: behind the sampled tokens it completes the token table."""
    return [
        ("ids", (tokens,), int64),
        ("slot_mapping", (tokens,), int64),
        ("positions", (tokens,), int32),
        ("token_source", (tokens,), int32),
        ("cu_seqlens_q", (rows + 1,), int32),
        ("seq_lens", (rows,), int32),
        ("logits_indices", (rows,), int32),
        ("block_table", (rows, width), int32),
    ]
