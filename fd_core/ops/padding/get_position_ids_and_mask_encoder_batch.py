"""get_position_ids_and_mask_encoder_batch: the absolute position of every packed token."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import int32, int64
from fd_core.ops.checks import check_data
from fd_core.ops.schema import EXACT, Case, In, InOut, op


def _case(slots: list[tuple[int, int, int]], spare: int) -> Case:
    """`slots`: (encoder, decoder, this_time) lengths."""
    tokens = sum(e or (t if d else 0) for e, d, t in slots)

    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        encoder, decoder, this = (np.array([s[i] for s in slots], np.int32) for i in range(3))
        return {
            "seq_lens_encoder": encoder,
            "seq_lens_decoder": decoder,
            "seq_lens_this_time": this,
            "position_ids": np.full(tokens + spare, -7, dtype),
        }

    return Case(f"{len(slots)}-{tokens}-spare{spare}", args, (int32, int64))


CASES = [_case([], 2), _case([(3, 1, 1), (2, 2, 2)], 3), _case([(2, 0, 0)], 0)]
CASES += [_case([(0, 5, 1), (4, 0, 4), (0, 0, 3), (0, 9, 4), (1, 70, 1)], 1)]


@op(family="padding", cases=CASES, tolerance=EXACT)
def get_position_ids_and_mask_encoder_batch(
    seq_lens_encoder: In, seq_lens_decoder: In, seq_lens_this_time: In, position_ids: InOut
) -> None:
    """position_ids = decoder[b] + 0, 1, ... for each slot's tokens of this step, slots in a row.

    A slot has seq_lens_encoder[b] tokens if that is > 0, else seq_lens_this_time[b] if
    seq_lens_decoder[b] > 0, else none. Lengths [B] int32 >= 0; position_ids [>= tokens] int32 | int64:
    elements beyond the tokens stay as they were. Too short a buffer: ValueError before anything is
    written. The mask of the name belongs to an older form. Specification ops-attention-kv §1.
    """
    encoder, decoder, this = (
        a.reshape(-1) for a in (seq_lens_encoder, seq_lens_decoder, seq_lens_this_time)
    )
    lens = np.where(encoder > 0, encoder, np.where(decoder > 0, this, 0))
    name, total, room = "get_position_ids_and_mask_encoder_batch", int(lens.sum()), position_ids.shape[0]
    check_data(bool((lens >= 0).all() and (decoder >= 0).all()), name, "seq_lens", ">= 0", lens.tolist())
    check_data(total <= room, name, "position_ids", f"room for {total} tokens", room)
    parts = [np.arange(n) + first for n, first in zip(lens, decoder, strict=True)]
    position_ids[:total] = np.concatenate([*parts, np.empty(0, np.int64)])
