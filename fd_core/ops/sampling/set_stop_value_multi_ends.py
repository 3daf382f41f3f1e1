"""set_stop_value_multi_ends: stop conditions after sampling, in place."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fd_core.api.dtype import int64
from fd_core.ops.schema import EXACT, Array, Case, In, InOut, op


def _case(rows: int, num: int, length: int, beam: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        slots = rows + 1

        def small(*shape: int) -> Array:
            return rng.integers(0, 4, shape)

        return {
            "topk_ids": small(rows, 1),
            "stop_flags": rng.random((slots, 1)) < 0.3,
            "seq_lens": rng.integers(0, 2, (slots, 1)).astype(np.int32),
            "end_ids": np.array([3, 9]),
            "next_tokens": small(slots, 1),
            "pre_ids": small(slots, 8),
            "step_idx": rng.integers(0, 12, (slots, 1)),
            "stop_seqs": small(slots, num, length),
            "stop_seqs_len": rng.integers(-1, length + 3, (slots, num)).astype(np.int32),
            "stop_token_ids": small(slots, 2),
            "stop_token_ids_len": rng.integers(0, 4, slots).astype(np.int32),
            "min_tokens": rng.integers(0, 8, (slots, 1)),
            "max_tokens": rng.integers(4, 20, (slots, 1)),
            "beam_search": beam,
        }

    return Case(f"{rows}-{num}x{length}-beam{beam:d}", args, (int64,))


CASES = [_case(0, 1, 1), _case(300, 2, 2), _case(300, 3, 4, True), _case(7, 0, 0)]


def _ends_with(history: Array, step: int, sequence: Array) -> bool:
    length = sequence.size
    return length <= step <= history.size and bool(np.all(history[step - length : step] == sequence))


def _base(prefill_stop: bool, stopped: bool, idle: bool, token: int, upcoming: int, end: int) -> Any:
    """(stopped, token, next) after the flags alone."""
    if prefill_stop:
        token = -1 if idle else token
        return True, token, token
    if not stopped:
        return False, token, token
    return (True, -1, upcoming) if idle else (True, end, end)


@op(family="sampling", cases=CASES, tolerance=EXACT)
def set_stop_value_multi_ends(
    topk_ids: InOut,
    stop_flags: InOut,
    seq_lens: In,
    end_ids: In,
    next_tokens: InOut,
    pre_ids: In,
    step_idx: In,
    stop_seqs: In,
    stop_seqs_len: In,
    stop_token_ids: In,
    stop_token_ids_len: In,
    min_tokens: In,
    max_tokens: In,
    beam_search: bool,
) -> None:
    """Per slot b < n, with EOS = end_ids[0] and can_stop = step_idx >= min_tokens:

    1. running: next = topk. Already stopped: topk = -1 if seq_lens is 0, else topk = next = EOS.
       With PREFILL_NODE_ONE_STEP_STOP=1 (read at each call): stop; topk = -1 if seq_lens is 0;
       next = topk.
    2. running, and step_idx >= max_tokens or (can_stop and topk is one of the slot's
       stop_token_ids): finish.
    3. not beam_search, can_stop, topk in end_ids: finish.
    4. running, can_stop, a stop sequence of length 0 < L <= LEN equals pre_ids[step_idx-L : step_idx]:
       finish.

    finish: stop, topk = next = EOS. topk_ids [n, 1] int64; stop_flags [B, 1] bool; seq_lens [>= n]
    int32; end_ids [e >= 1] int64; next_tokens, step_idx, min_tokens, max_tokens [B, 1] int64; pre_ids
    [B, P] int64; stop_seqs [B, NUM, LEN] int64; stop_seqs_len [B, NUM] int32; stop_token_ids [B, M]
    int64; stop_token_ids_len [B] int32 (clipped to M). A sequence that would reach outside pre_ids
    does not match.
    """
    prefill_stop = os.environ.get("PREFILL_NODE_ONE_STEP_STOP", "").startswith("1")
    ends = end_ids.reshape(-1)
    tokens, flags, upcoming = (a.reshape(-1) for a in (topk_ids, stop_flags, next_tokens))
    for b in range(tokens.size):
        idle = seq_lens.reshape(-1)[b] == 0
        state = _base(prefill_stop, bool(flags[b]), bool(idle), tokens[b], upcoming[b], ends[0])
        flags[b], tokens[b], upcoming[b] = state
        step = int(step_idx.reshape(-1)[b])
        can_stop = step >= min_tokens.reshape(-1)[b]
        listed = stop_token_ids[b, : max(0, stop_token_ids_len.reshape(-1)[b])]
        full = step >= max_tokens.reshape(-1)[b]
        finish = not flags[b] and (full or (can_stop and tokens[b] in listed))
        finish = finish or (not beam_search and can_stop and tokens[b] in ends)
        sizes = stop_seqs_len[b]
        known = (w[:size] for w, size in zip(stop_seqs[b], sizes, strict=True) if 0 < size <= w.size)
        running = not flags[b] and not finish
        finish = finish or (running and can_stop and any(_ends_with(pre_ids[b], step, s) for s in known))
        if finish:
            flags[b], tokens[b], upcoming[b] = True, ends[0], ends[0]
