"""rejection_top_p_sampling: one draw per row from the top-p (and top-k) truncated distribution."""

from __future__ import annotations

import numpy as np

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, host
from fd_xpu.philox import bits
from fd_xpu.truncate import sample


@PaddleKernel
def rejection_top_p_sampling(
    probs: Value,
    top_p: Value,
    top_k: Value | None,
    seed: int,
    row_seeds: Value | None,
    positions: Value | None,
    samples: Value,
) -> None:
    """Composed; nothing is rejected: the kept set is known before the draw."""
    rows = probs.shape[0]
    numbers = [bits(seed, 0, row) for row in range(rows)]
    if row_seeds is not None and positions is not None:
        pairs = zip(host(row_seeds).reshape(-1).tolist(), host(positions).reshape(-1).tolist(), strict=True)
        numbers = [bits(*pair) for pair in pairs]
    k = np.zeros(rows, np.int64) if top_k is None else host(top_k).reshape(-1)
    none = np.zeros(rows, np.float32)
    drawn = sample(probs, k, host(top_p).reshape(-1), none, False, numbers)
    if rows:
        samples[:] = drawn.reshape(samples.shape)
