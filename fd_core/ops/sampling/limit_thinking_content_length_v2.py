"""limit_thinking_content_length_v2: end a reasoning part with its marker between line breaks, in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import int64
from fd_core.ops.sampling.limit_thinking_content_length_v1 import slots
from fd_core.ops.schema import EXACT, Case, In, InOut, op


def _case(n: int) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        given = slots(rng, n, 5)
        stopped, status = given.pop("stop_flags"), given.pop("status")
        ids = {"think_end_id": 5, "line_break_id": 8}
        return {**given, "limit_think_status": status, "stop_flags": stopped, **ids}

    return Case(str(n), args, (int64,))


@op(family="sampling", cases=[_case(0), _case(5), _case(500)], tolerance=EXACT)
def limit_thinking_content_length_v2(
    next_tokens: InOut,
    max_think_lens: In,
    step_idx: In,
    limit_think_status: InOut,
    stop_flags: In,
    think_end_id: int,
    line_break_id: int,
) -> None:
    """Per slot with max = max_think_lens >= 0, unless it is stopped in status 3:

    status <= 1: at step_idx max, max+1, max+2, max+3 the token becomes line break, think end, line
    break, line break; status 1, 1, 1, 2. Then status 0 and token == think_end_id: 3; status 2: 3.

    Shapes and types as in limit_thinking_content_length_v1.
    """
    tokens, steps = next_tokens.reshape(-1), step_idx.reshape(-1)
    status, stopped = limit_think_status.reshape(-1), stop_flags.reshape(-1)
    forced = {0: (line_break_id, 1), 1: (think_end_id, 1), 2: (line_break_id, 1), 3: (line_break_id, 2)}
    for b, limit in enumerate(max_think_lens.reshape(-1)):
        if limit < 0 or (status[b] == 3 and stopped[b]):
            continue
        past = int(steps[b]) - int(limit)
        if status[b] <= 1 and past in forced:
            tokens[b], status[b] = forced[past]
        natural = status[b] == 0 and tokens[b] == think_end_id
        if status[b] == 2 or natural:
            status[b] = 3
