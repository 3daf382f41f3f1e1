"""limit_thinking_content_length_v1: end a reasoning part at its limit, in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import int64
from fd_core.ops.schema import EXACT, Array, Case, In, InOut, op


def slots(rng: np.random.Generator, n: int, statuses: int) -> dict[str, Array]:
    """Random slots around their limits; token 5 ends thinking, 2 and 3 end the text."""
    return {
        "next_tokens": rng.integers(1, 7, (n, 1)),
        "max_think_lens": rng.integers(-1, 6, n).astype(np.int32),
        "step_idx": rng.integers(0, 10, (n, 1)),
        "status": rng.integers(0, statuses, n).astype(np.int32),
        "stop_flags": rng.random(n) < 0.3,
    }


def _case(n: int) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        given = slots(rng, n, 4)
        eos = np.array([[2], [3]])
        status = given.pop("status")
        return {**given, "limit_think_status": status, "eos_token_ids": eos, "think_end_id": 5}

    return Case(str(n), args, (int64,))


@op(family="sampling", cases=[_case(0), _case(5), _case(500)], tolerance=EXACT)
def limit_thinking_content_length_v1(
    next_tokens: InOut,
    max_think_lens: In,
    step_idx: In,
    limit_think_status: InOut,
    stop_flags: InOut,
    eos_token_ids: In,
    think_end_id: int,
) -> None:
    """Per slot with max_think_lens >= 0, unless it is stopped in status 2:

    status < 1: at step_idx >= max_think_lens the token becomes think_end_id, status 1; otherwise an
    end token becomes think_end_id too, status 1, and the slot runs on (stop flag cleared).
    Then status < 2 and token == think_end_id: status 2.

    next_tokens, step_idx int64 (step_idx = tokens generated before this one), max_think_lens,
    limit_think_status int32, stop_flags bool: [n] or [n, 1] each; eos_token_ids int64 of any shape.
    """
    tokens, steps = next_tokens.reshape(-1), step_idx.reshape(-1)
    status, stopped = limit_think_status.reshape(-1), stop_flags.reshape(-1)
    for b, limit in enumerate(max_think_lens.reshape(-1)):
        if limit < 0 or (status[b] == 2 and stopped[b]):
            continue
        if status[b] < 1 and (steps[b] >= limit or tokens[b] in eos_token_ids):
            if steps[b] < limit:
                stopped[b] = False
            tokens[b], status[b] = think_end_id, 1
        if status[b] < 2 and tokens[b] == think_end_id:
            status[b] = 2
