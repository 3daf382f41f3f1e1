"""sample_top_k_top_p: one reproducible draw per row from the truncated distribution."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, host
from fd_xpu.philox import bits
from fd_xpu.truncate import sample


@PaddleKernel
def sample_top_k_top_p(
    probs: Value, top_k: Value, top_p: Value, min_p: Value, seed: Value, position: Value
) -> Value:
    """Composed; random numbers are made on the host."""
    keys = zip(host(seed).tolist(), host(position).tolist(), strict=True)
    numbers = [bits(*key) for key in keys]
    return sample(probs, host(top_k), host(top_p), host(min_p), True, numbers)
