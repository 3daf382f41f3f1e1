"""Sampling, penalties, stop conditions, limits (specification ops-sampling-speculative §§1–3, 11, 12)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from fd_core import ops
from fd_core.compat.fastdeploy.arrays import host, like, zeros
from fd_core.compat.fastdeploy.overload import form, is_floating

_LARGEST = np.iinfo(np.int64).max
#: Seeds of calls with seed -1, which FastDeploy takes from Paddle's device generator.
_draws = itertools.count(1)
_process_seed = np.random.SeedSequence()


def seed_of(seed: int) -> int:
    """A seed >= 0 as it is; for -1 the next of a sequence that differs between processes."""
    if seed >= 0:
        return seed
    entropy = (int(_process_seed.entropy or 0), next(_draws))  # type: ignore[arg-type]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


@form("rejection_top_p_sampling")
def rejection_top_p_sampling(probs: Any, top_p: Any, top_k: Any, seed: int) -> Any:
    return ops.rejection_top_p_sampling(probs, top_p, top_k, seed_of(seed), None, None)


@form("rejection_top_p_sampling")
@form("top_p_sampling_reject")
def top_p_sampling_reject(probs: Any, top_p: Any, seed: int) -> Any:
    return ops.rejection_top_p_sampling(probs, top_p, None, seed_of(seed), None, None)


@form("get_token_penalty_multi_scores")
def _penalty(
    pre_ids: Any, prompt_ids: Any, prompt_len: Any, logits: Any, penalty_scores: Any, frequency_scores: Any,
    presence_scores: Any, temperatures: Any, bad_tokens: Any, bad_tokens_len: Any, cur_len: Any,
    min_len: Any, eos_token_id: Any,
) -> Any:  # fmt: skip
    return ops.get_token_penalty_multi_scores(
        pre_ids, prompt_ids, prompt_len, logits, penalty_scores, frequency_scores, presence_scores,
        temperatures, bad_tokens, bad_tokens_len, cur_len, min_len, eos_token_id,
    )  # fmt: skip


def _second_is_floating(bound: Mapping[str, Any]) -> bool:
    return is_floating(bound["logits"])


@form("get_token_penalty_multi_scores", when=_second_is_floating)
def _penalty_all_ids(
    token_ids_all: Any, logits: Any, penalty_scores: Any, frequency_scores: Any, presence_scores: Any,
    temperatures: Any, bad_tokens: Any, bad_tokens_lens: Any, prompt_lens: Any, cur_dec_lens: Any,
    min_dec_lens: Any, eos_token_id: Any,
) -> Any:  # fmt: skip
    """Prompt and history in one row each; the history is moved to its own rows on the host."""
    history = generated(token_ids_all, prompt_lens)
    return _penalty(
        history, token_ids_all, prompt_lens, logits, penalty_scores, frequency_scores, presence_scores,
        temperatures, bad_tokens, bad_tokens_lens, cur_dec_lens, min_dec_lens, eos_token_id,
    )  # fmt: skip


@form("get_token_penalty_multi_scores")
def _penalty_global_bad(
    pre_ids: Any, prompt_ids: Any, prompt_len: Any, logits: Any, penalty_scores: Any, frequency_scores: Any,
    presence_scores: Any, temperatures: Any, bad_tokens: Any, cur_len: Any, min_len: Any, eos_token_id: Any,
) -> Any:  # fmt: skip
    """One list of bad tokens for all rows."""
    bad = host(bad_tokens).reshape(1, -1)
    slots = int(pre_ids.shape[0])
    lengths = like(logits, np.full((slots, 1), bad.shape[1], np.int64))
    rows = like(logits, np.ascontiguousarray(np.repeat(bad, slots, 0)))
    return _penalty(
        pre_ids, prompt_ids, prompt_len, logits, penalty_scores, frequency_scores, presence_scores,
        temperatures, rows, lengths, cur_len, min_len, eos_token_id,
    )  # fmt: skip


@form("get_token_penalty_multi_scores")
def _penalty_without_prompt(
    pre_ids: Any, logits: Any, penalty_scores: Any, frequency_scores: Any, presence_scores: Any,
    temperatures: Any, bad_tokens: Any, cur_len: Any, min_len: Any, eos_token_id: Any,
) -> Any:  # fmt: skip
    slots = int(pre_ids.shape[0])
    prompt, none = zeros(logits, (slots, 1)), zeros(logits, (slots, 1))
    return _penalty_global_bad(
        pre_ids, prompt, none, logits, penalty_scores, frequency_scores, presence_scores, temperatures,
        bad_tokens, cur_len, min_len, eos_token_id,
    )  # fmt: skip


def generated(token_ids_all: Any, prompt_lens: Any) -> Any:
    """What follows each row's prompt, moved to the row's start; -1 behind it."""
    rows, starts = host(token_ids_all), host(prompt_lens).reshape(-1)
    moved = np.full_like(rows, -1)
    for row, start in enumerate(starts):
        moved[row, : rows.shape[1] - start] = rows[row, start:]
    return like(token_ids_all, moved)


@form("set_stop_value_multi_ends")
@form("stop_generation_multi_ends")
def _stop_newest(
    topk_ids: Any, stop_flags: Any, seq_lens: Any, end_ids: Any, next_tokens: Any, pre_ids: Any,
    step_idx: Any, stop_seqs: Any, stop_seqs_len: Any, stop_token_ids: Any, stop_token_ids_len: Any,
    min_tokens: Any, max_tokens: Any, beam_search: bool,
) -> Any:  # fmt: skip
    return ops.set_stop_value_multi_ends(
        topk_ids, stop_flags, seq_lens, end_ids, next_tokens, pre_ids, step_idx, stop_seqs, stop_seqs_len,
        stop_token_ids, stop_token_ids_len, min_tokens, max_tokens, bool(beam_search),
    )  # fmt: skip


@form("set_stop_value_multi_ends")
@form("stop_generation_multi_ends")
def _stop_all_ids(
    topk_ids: Any, stop_flags: Any, seq_lens: Any, end_ids: Any, next_tokens: Any, token_ids_all: Any,
    prompt_lens: Any, step_idx: Any, stop_seqs: Any, stop_seqs_len: Any, min_tokens: Any, beam_search: bool,
) -> Any:  # fmt: skip
    """The history is moved to its own rows on the host."""
    history = generated(token_ids_all, prompt_lens)
    return _stop_newest(
        topk_ids, stop_flags, seq_lens, end_ids, next_tokens, history, step_idx, stop_seqs, stop_seqs_len,
        *_no_token_lists(stop_flags), min_tokens, _unlimited(stop_flags), beam_search,
    )  # fmt: skip


@form("set_stop_value_multi_ends")
@form("stop_generation_multi_ends")
def _stop_sequences(
    topk_ids: Any, stop_flags: Any, seq_lens: Any, end_ids: Any, next_tokens: Any, pre_ids: Any,
    step_idx: Any, stop_seqs: Any, stop_seqs_len: Any, beam_search: bool,
) -> Any:  # fmt: skip
    least = zeros(stop_flags, (int(stop_flags.shape[0]), 1))
    return _stop_newest(
        topk_ids, stop_flags, seq_lens, end_ids, next_tokens, pre_ids, step_idx, stop_seqs, stop_seqs_len,
        *_no_token_lists(stop_flags), least, _unlimited(stop_flags), beam_search,
    )  # fmt: skip


@form("set_stop_value_multi_ends")
@form("stop_generation_multi_ends")
def _stop_ends(
    topk_ids: Any, stop_flags: Any, seq_lens: Any, end_ids: Any, next_tokens: Any, beam_search: bool
) -> Any:
    slots = int(stop_flags.shape[0])
    history, step = zeros(stop_flags, (slots, 1)), zeros(stop_flags, (slots, 1))
    sequences, lengths = zeros(stop_flags, (slots, 1, 1)), zeros(stop_flags, (slots, 1), "int32")
    return _stop_sequences(
        topk_ids, stop_flags, seq_lens, end_ids, next_tokens, history, step, sequences, lengths, beam_search
    )


def _no_token_lists(stop_flags: Any) -> tuple[Any, Any]:
    slots = int(stop_flags.shape[0])
    return zeros(stop_flags, (slots, 1)), zeros(stop_flags, (slots,), "int32")


def _unlimited(stop_flags: Any) -> Any:
    return like(stop_flags, np.full((int(stop_flags.shape[0]), 1), _LARGEST, np.int64))


@form("apply_token_bitmask_inplace")
@form("apply_token_bitmask")
def apply_token_bitmask_inplace(
    logits: Any, bitmask: Any, vocab_size: Any = None, indices: Any = None
) -> Any:
    """`indices`: a list of rows, or a tensor."""
    if vocab_size is None:
        vocab_size = min(int(logits.shape[-1]), 32 * int(bitmask.shape[-1]))
    if isinstance(indices, list | tuple):
        indices = like(logits, np.asarray(indices, np.int32))
    return ops.apply_token_bitmask(logits, bitmask, int(vocab_size), indices)


@form("limit_thinking_content_length_v1")
def _limit_v1(
    next_tokens: Any, max_think_lens: Any, step_idx: Any, limit_think_status: Any, stop_flags: Any,
    eos_token_ids: Any, think_end_id: int,
) -> Any:  # fmt: skip
    """Returns `next_tokens`."""
    ops.limit_thinking_content_length_v1(
        next_tokens, max_think_lens, step_idx, limit_think_status, stop_flags, eos_token_ids, think_end_id
    )
    return next_tokens


@form("limit_thinking_content_length_v1")
def _limit_v1_short(
    next_tokens: Any, max_think_lens: Any, step_idx: Any, limit_think_status: Any, think_end_id: int
) -> Any:
    """A slot whose thinking has ended is left alone; end tokens are not looked at."""
    stopped, none = _all_stopped(next_tokens), zeros(next_tokens, (0,))
    return _limit_v1(next_tokens, max_think_lens, step_idx, limit_think_status, stopped, none, think_end_id)


@form("limit_thinking_content_length_v2")
def _limit_v2(
    next_tokens: Any, max_think_lens: Any, step_idx: Any, limit_think_status: Any, stop_flags: Any,
    think_end_id: int, line_break_id: int,
) -> Any:  # fmt: skip
    """Returns `next_tokens`."""
    ops.limit_thinking_content_length_v2(
        next_tokens, max_think_lens, step_idx, limit_think_status, stop_flags, think_end_id, line_break_id
    )
    return next_tokens


@form("limit_thinking_content_length_v2")
def _limit_v2_short(
    next_tokens: Any, max_think_lens: Any, step_idx: Any, limit_think_status: Any, think_end_id: int,
    line_break_id: int,
) -> Any:  # fmt: skip
    stopped = _all_stopped(next_tokens)
    return _limit_v2(
        next_tokens, max_think_lens, step_idx, limit_think_status, stopped, think_end_id, line_break_id
    )


@form("limit_thinking_content_length_v3")
def _limit_v3(
    next_tokens: Any, max_think_lens: Any, step_idx: Any, limit_think_status: Any, stop_flags: Any,
    eos_token_ids: Any, inject_token_ids: Any, think_end_id: int,
) -> Any:  # fmt: skip
    """The general form without a limit of the reply."""
    no_limit = like(next_tokens, np.full(int(next_tokens.shape[0]), -1, np.int32))
    return _limit_general(
        next_tokens, max_think_lens, no_limit, step_idx, limit_think_status, stop_flags, eos_token_ids,
        inject_token_ids, think_end_id, False,
    )  # fmt: skip


@form("limit_thinking_content_length")
def _limit_general(
    next_tokens: Any, max_think_lens: Any, max_reply_lens: Any, step_idx: Any, limit_status: Any,
    stop_flags: Any, eos_token_ids: Any, inject_token_ids: Any, think_end_id: int,
    splitwise_role_is_decode: bool,
) -> Any:  # fmt: skip
    """Returns `next_tokens`."""
    ops.limit_thinking_content_length(
        next_tokens, max_think_lens, max_reply_lens, step_idx, limit_status, stop_flags, eos_token_ids,
        inject_token_ids, think_end_id, bool(splitwise_role_is_decode),
    )  # fmt: skip
    return next_tokens


def _all_stopped(example: Any) -> Any:
    return like(example, np.ones(int(example.shape[0]), bool))
