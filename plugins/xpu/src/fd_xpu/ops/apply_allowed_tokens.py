"""apply_allowed_tokens: exclude every token but the listed ones, in place."""

from __future__ import annotations

import numpy as np

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, host
from fd_xpu.masking import exclude


@PaddleKernel
def apply_allowed_tokens(logits: Value, offsets: Value, ids: Value) -> Value:
    """One mask is made on the host from the lists."""
    rows, vocab = logits.shape
    starts, listed = host(offsets), host(ids)
    allowed = np.ones((rows, vocab), bool)
    for row in range(rows):
        known = listed[starts[row] : starts[row + 1]]
        known = known[(known >= 0) & (known < vocab)]
        if known.size:
            allowed[row] = False
            allowed[row, known] = True
    return exclude(logits, allowed)
