"""Padding, ragged layout and the history of tokens (specification ops-attention-kv §1)."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fd_core import ops
from fd_core.compat.fastdeploy.arrays import host, like, refuse
from fd_core.compat.fastdeploy.overload import form


@form("get_padding_offset")
def _newest_offset(
    input_ids: Any, seq_len: Any, draft_tokens: Any, seq_lens_encoder: Any, seq_lens_decoder: Any,
    cpu_token_num: int,
) -> Any:  # fmt: skip
    return ops.get_padding_offset(
        input_ids, seq_len, draft_tokens, seq_lens_encoder, seq_lens_decoder, int(cpu_token_num)
    )


@form("get_padding_offset")
def _without_decoder(
    input_ids: Any, seq_len: Any, draft_tokens: Any, seq_lens_encoder: Any, cpu_token_num: int
) -> Any:
    return ops.get_padding_offset(
        input_ids, seq_len, draft_tokens, seq_lens_encoder, None, int(cpu_token_num)
    )


@form("get_padding_offset")
def _with_token_tensor(input_ids: Any, token_num: Any, seq_len: Any) -> Any:
    """The count comes from a tensor, so the device is read."""
    return ops.get_padding_offset(input_ids, seq_len, None, None, None, _count(token_num))


@form("get_padding_offset")
def _oldest_offset(input_ids: Any, cum_offsets: Any, token_num: Any, seq_len: Any) -> Any:
    """`cum_offsets` follows from the lengths and is not read; results are the newest form's."""
    return ops.get_padding_offset(input_ids, seq_len, None, None, None, _count(token_num))


def _count(value: Any) -> int:
    return value if isinstance(value, int) else int(host(value).reshape(-1)[0])


@form("rebuild_padding")
def rebuild_padding(
    tmp_out: Any, cu_seqlens_q: Any, seq_len_this_time: Any, seq_lens_decoder: Any, seq_lens_encoder: Any,
    output_padding_offset: Any, first_token_out: Any, max_input_length: int, enable_logprob: bool,
) -> Any:  # fmt: skip
    """Speculative decoding reads the prompts' lengths back to count the rows, as the original does."""
    slots = prod(seq_len_this_time.shape)
    rows = slots
    if output_padding_offset is not None:
        rows = int(tmp_out.shape[0]) - int(np.maximum(host(seq_lens_encoder) - 1, 0).sum())
    lengths = (seq_len_this_time, seq_lens_decoder, seq_lens_encoder)
    cumulated = _prefix_sums(cu_seqlens_q, slots, int(max_input_length))
    return ops.rebuild_padding(
        tmp_out, cumulated, *lengths, output_padding_offset, first_token_out, int(max_input_length),
        bool(enable_logprob), rows,
    )  # fmt: skip


@form("rebuild_padding")
def _without_first_token(
    tmp_out: Any, cum_offsets: Any, seq_len_this_time: Any, seq_lens_decoder: Any, seq_lens_encoder: Any,
    output_padding_offset: Any, max_input_length: int,
) -> Any:  # fmt: skip
    """`cum_offsets` [B] or `cu_seqlens_q` [B + 1], told apart by their length."""
    lengths = (seq_len_this_time, seq_lens_decoder, seq_lens_encoder)
    return rebuild_padding(
        tmp_out, cum_offsets, *lengths, output_padding_offset, None, max_input_length, False
    )


def _prefix_sums(given: Any, slots: int, max_input_length: int) -> Any:
    """cu_seqlens_q [B + 1] as it is; from cum_offsets [B], the padding before each slot, on the host."""
    if prod(given.shape) == slots + 1:
        return given
    starts = np.arange(slots, dtype=np.int32) * max_input_length - host(given).reshape(-1)
    return like(given, np.append(starts, starts[-1:] + max_input_length).astype(np.int32))


@form("get_position_ids_and_mask_encoder_batch")
def _positions(
    seq_lens_encoder: Any, seq_lens_decoder: Any, seq_lens_this_time: Any, position_ids: Any
) -> Any:
    return ops.get_position_ids_and_mask_encoder_batch(
        seq_lens_encoder, seq_lens_decoder, seq_lens_this_time, position_ids
    )


@form("get_position_ids_and_mask_encoder_batch")
def _positions_and_mask(
    seq_lens_encoder: Any, seq_lens_decoder: Any, seq_lens_this_time: Any, position_ids: Any,
    mask_encoder_batch: Any,
) -> Any:  # fmt: skip
    """The older list, where positions of a prompt's chunk start at 0 again."""
    name, fix = "get_position_ids_and_mask_encoder_batch", "call the newer form with four arguments"
    refuse(name, "mask_encoder_batch", "a tensor", fix)
