"""apply_token_bitmask: a grammar's bit per token, applied to logits in place."""

from __future__ import annotations

import numpy as np

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, check, check_host_range, host
from fd_xpu.masking import exclude

NAME = "apply_token_bitmask"


@PaddleKernel
def apply_token_bitmask(logits: Value, bitmask: Value, vocab_size: int, indices: Value | None) -> Value:
    """The bits are unpacked on the host, where grammars make them; one mask goes to the device."""
    rows, vocab = logits.shape
    limit = min(vocab, 32 * bitmask.shape[1])
    check(0 <= vocab_size <= limit, f"{NAME}.vocab_size", f"0 .. {limit}", vocab_size)
    chosen = np.arange(rows) if indices is None else host(indices)
    check_host_range(f"{NAME}.indices", chosen, 0, min(rows, bitmask.shape[0]))
    bits = np.unpackbits(host(bitmask).view(np.uint8), axis=-1, bitorder="little")[:, :vocab_size]
    allowed = np.ones((rows, vocab), bool)
    for row in chosen.tolist():
        if bits[row].any():  # a dead grammar leaves the row as it is
            allowed[row, :vocab_size] = bits[row]
    return exclude(logits, allowed)
