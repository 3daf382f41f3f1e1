"""merge_prefill_decode_output: the decode rows of one result into the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.ops.checks import check_data
from fd_core.ops.schema import EXACT, Case, In, InOut, op


def _case(slots: list[tuple[int, int, int]], head_num: int, head_dim: int) -> Case:
    """`slots`: (encoder, decoder, this_time) lengths."""
    encoder, decoder, this = (np.array([s[i] for s in slots], np.int32) for i in range(3))
    ends = np.concatenate([[0], np.cumsum(this)]).astype(np.int32)

    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        shape = (int(ends[-1]), head_num * head_dim)
        return {
            "encoder_res": rng.standard_normal(shape).astype(dtype),
            "decoder_res": rng.standard_normal(shape).astype(dtype),
            **{"seq_lens_encoder": encoder, "seq_lens_decoder": decoder},
            **{"seq_lens_this_time": this, "cu_seq_q": ends},
            **{"head_num": head_num, "head_dim": head_dim, "max_token": 4},
        }

    return Case(f"{len(slots)}x{head_num}x{head_dim}", args, FLOATS)


CASES = [_case([], 2, 8), _case([(5, 0, 5), (0, 9, 1), (0, 0, 0), (0, 3, 4), (2, 8, 2)], 2, 128)]
CASES += [_case([(0, 1, 1), (0, 2, 0)], 3, 5)]


@op(family="padding", cases=CASES, tolerance=EXACT)
def merge_prefill_decode_output(
    encoder_res: InOut,
    decoder_res: In,
    seq_lens_encoder: In,
    seq_lens_decoder: In,
    seq_lens_this_time: In,
    cu_seq_q: In,
    head_num: int,
    head_dim: int,
    max_token: int,
) -> None:
    """encoder_res[r] = decoder_res[r] for the rows r of every decode slot; other rows stay.

    A decode slot has encoder == 0 and decoder > 0; its rows are cu_seq_q[b] + 0 .. this_time[b] - 1.
    encoder_res, decoder_res [T, head_num * head_dim] float32 | bfloat16 | float16, alike; lengths [B],
    cu_seq_q [B + 1] int32; any head_dim. max_token bounds the tokens of a decode slot: more is a
    ValueError (never a silent cut), as are rows outside [0, T), before anything is written.
    Specification ops-attention-kv §1.
    """
    name, tokens = "merge_prefill_decode_output", encoder_res.shape[0]
    encoder, decoder, this, starts = (
        a.reshape(-1) for a in (seq_lens_encoder, seq_lens_decoder, seq_lens_this_time, cu_seq_q)
    )
    slots = np.flatnonzero((encoder == 0) & (decoder > 0))
    for b in slots:
        within = 0 <= this[b] <= max_token
        check_data(within, name, "max_token", f"at least {this[b]} for slot {b}", max_token)
        inside = 0 <= starts[b] <= tokens - this[b]
        check_data(inside, name, "cu_seq_q", f"rows in [0, {tokens})", f"{starts[b]} + {this[b]}")
    for b in slots:
        rows = slice(starts[b], starts[b] + this[b])
        encoder_res[rows] = decoder_res[rows]
