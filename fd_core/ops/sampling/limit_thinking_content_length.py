"""limit_thinking_content_length: limits of a reasoning part and of the reply after it, in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import int64
from fd_core.ops.sampling.limit_thinking_content_length_v1 import slots
from fd_core.ops.schema import EXACT, Case, In, InOut, op


def _case(n: int, inject: int, decode: bool) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        given = slots(rng, n, inject + 6)
        return {
            "next_tokens": given["next_tokens"],
            "max_think_lens": given["max_think_lens"],
            "max_reply_lens": rng.integers(-1, 4, n).astype(np.int32),
            "step_idx": given["step_idx"],
            "limit_status": given["status"] - 1,
            "stop_flags": given["stop_flags"],
            "eos_token_ids": np.array([[2], [3]]),
            "inject_token_ids": np.arange(20, 20 + inject),
            "think_end_id": 5,
            "splitwise_role_is_decode": decode,
        }

    return Case(f"{n}-inject{inject}-decode{decode:d}", args, (int64,))


CASES = [
    _case(0, 0, False),
    _case(400, 0, False),
    _case(400, 3, False),
    _case(400, 0, True),
    _case(400, 2, True),
]


def _reply(token: int, status: int, limit: int, done: int, end: int) -> tuple[int, int]:
    """Step 3: (token, status)."""
    base = done + 1
    status = base if status == done else status
    if status < base:
        return token, status
    return (end, base + limit) if status - base >= limit else (token, status + 1)


@op(family="sampling", cases=CASES, tolerance=EXACT)
def limit_thinking_content_length(
    next_tokens: InOut,
    max_think_lens: In,
    max_reply_lens: InOut,
    step_idx: In,
    limit_status: InOut,
    stop_flags: In,
    eos_token_ids: In,
    inject_token_ids: In,
    think_end_id: int,
    splitwise_role_is_decode: bool,
) -> None:
    """Per slot that is not stopped and has a limit (>= 0). I = number of injected tokens, done = I + 1
    (1 without any), base = done + 1; a negative status counts as 0; prev = status on entry.

    1. status 0 and token == think_end_id: status = done, and max_reply_lens += 2 where it is >= 0.
    2. max_think_lens >= 0 and status < base: status 0 becomes 1 (done without injection) at step_idx ==
       max_think_lens > 0, and at once where max_think_lens is 0 (one more in the decode role). Still 0
       with injection and an end token: 1. Status 1..I: token = inject[status - 1], status += 1.
    3. max_reply_lens >= 0, unless step 1 or 2 has just reached done: done becomes base; from base on, the
       token becomes eos[0] after max_reply_lens tokens (status stays base + max_reply_lens), else
       status += 1.

    max_reply_lens, limit_status [n] or [n, 1] int32; inject_token_ids [I] int64; eos_token_ids int64,
    at least one; the rest as in limit_thinking_content_length_v1.
    """
    inject, eos = inject_token_ids.reshape(-1), eos_token_ids.reshape(-1)
    done = inject.size + 1 if inject.size else 1
    tokens, steps = next_tokens.reshape(-1), step_idx.reshape(-1)
    statuses, stopped, replies = (a.reshape(-1) for a in (limit_status, stop_flags, max_reply_lens))
    for b, (think, reply) in enumerate(zip(max_think_lens.reshape(-1), replies, strict=True)):
        if stopped[b] or (think < 0 and reply < 0):
            continue
        token, before = tokens[b], max(0, int(statuses[b]))
        status = before
        if status == 0 and token == think_end_id:
            status = done
            replies[b] += 2 if reply >= 0 else 0
        if think >= 0 and status <= done:
            if status == 0 and (think == 0 or steps[b] == think):
                status = 1 if inject.size else done
                status += think == 0 and splitwise_role_is_decode
            status = 1 if status == 0 and inject.size and token in eos else status
            if 1 <= status <= inject.size:
                token, status = inject[status - 1], status + 1
        if reply >= 0 and not status == done > before:
            token, status = _reply(token, status, replies[b], done, eos[0])
        tokens[b], statuses[b] = token, status
