"""extract_text_token_output: last-token scores per slot of a multimodal batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import float32
from fd_core.api.tensor import TensorSpec
from fd_core.ops.checks import check_data
from fd_core.ops.schema import EXACT, Case, In, Out, op


def _case(lens: list[int], hidden: int, longest: int, index: int, images: int) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        ends = np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)
        return {
            "max_seq_len": np.array([longest], np.int32),
            "max_seq_len_index": np.array([index], np.int32),
            "mm_token_num_len": np.array([images], np.int32),
            "seq_lens_this_time": np.array(lens, np.int32),
            "cu_seqlens_q": ends,
            "hidden_states": rng.standard_normal((int(ends[-1]), hidden)).astype(dtype),
        }

    return Case(f"{len(lens)}x{hidden}-{longest}-{index}-{images}", args, (float32,))


CASES = [_case([2, 3], 4, 3, 1, 3), _case([2, 3], 4, 3, 1, 2), _case([0, 4, 0, 1], 9, 4, 1, 0)]
CASES += [_case([], 4, 0, 0, 0)]


def _infer(**inputs: Any) -> list[TensorSpec]:
    slots = int(np.prod(inputs["seq_lens_this_time"].shape))
    return [TensorSpec((slots, inputs["hidden_states"].shape[1]), float32)]


@op(family="padding", infer=_infer, cases=CASES, tolerance=EXACT)
def extract_text_token_output(
    max_seq_len: In,
    max_seq_len_index: In,
    mm_token_num_len: In,
    seq_lens_this_time: In,
    cu_seqlens_q: In,
    hidden_states: In,
    out: Out,
) -> None:
    """out[b] = hidden_states[cu_seqlens_q[b + 1] - 1], with two exceptions.

    The slot max_seq_len_index, when its whole input is image tokens (max_seq_len ==
    mm_token_num_len), gives zeros; a slot without tokens this step gives ones. The first three
    arguments: [1] int32; seq_lens_this_time [B], cu_seqlens_q [B + 1] int32; hidden_states [T, H]
    float32; out [B, H] float32. An end outside [1, T] of a slot that is read: ValueError before
    anything is written. Specification ops-attention-kv §1.
    """
    this, tokens = seq_lens_this_time.reshape(-1), hidden_states.shape[0]
    ends = cu_seqlens_q.reshape(-1)[1:]
    image = np.zeros(this.shape, bool)
    if max_seq_len.item() == mm_token_num_len.item() and 0 <= max_seq_len_index.item() < len(this):
        image[max_seq_len_index.item()] = True
    read = ~image & (this != 0)
    inside = bool(((ends[read] >= 1) & (ends[read] <= tokens)).all())
    check_data(inside, "extract_text_token_output", "cu_seqlens_q", f"ends in [1, {tokens}]", ends.tolist())
    out[...] = 1.0
    out[image] = 0.0
    out[read] = hidden_states[ends[read] - 1]
