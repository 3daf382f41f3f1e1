"""sample_from_logits: temperature, softmax, filters and draw in one call."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel, rounded
from fd_xpu.compute import Value, check, host
from fd_xpu.ops.temperature_softmax import probabilities
from fd_xpu.philox import bits
from fd_xpu.truncate import sample


@PaddleKernel
def sample_from_logits(
    logits: Value,
    temperature: Value,
    top_k: Value,
    top_p: Value,
    min_p: Value,
    seed: Value,
    position: Value,
) -> Value:
    """temperature_softmax, then sample_top_k_top_p, with the probabilities rounded to float32 between."""
    rows, vocab = logits.shape
    check(vocab > 0 or not rows, "sample_from_logits.logits", "a vocabulary", [rows, vocab])
    probs = rounded(probabilities(logits, temperature), logits.dtype)
    numbers = [bits(*key) for key in zip(host(seed).tolist(), host(position).tolist(), strict=True)]
    return sample(probs, host(top_k), host(top_p), host(min_p), True, numbers)
