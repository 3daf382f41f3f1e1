"""gather_tokens: rows of a tensor by index."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, check_range, take_rows, words
from fd_xpu.framework import paddle


@PaddleKernel
def gather_tokens(src: Value, indices: Value) -> Value:
    """Composed: gather, and zeros for negative indices."""
    indices = check_range("gather_tokens.indices", indices, -(2**31), src.shape[0])
    shape = [indices.shape[0], *src.shape[1:]]
    if src.shape[0] == 0 or 0 in shape:
        return paddle.zeros(shape, src.dtype)
    rows = take_rows(src, indices.clip(min=0)).reshape([indices.shape[0], -1])
    bits = words(rows)
    wide = bits.astype("int32") if bits.element_size() < 4 else bits
    kept = paddle.where((indices >= 0).unsqueeze(1), wide, paddle.zeros_like(wide)).astype(bits.dtype)
    return kept.view(src.dtype).reshape(shape)
