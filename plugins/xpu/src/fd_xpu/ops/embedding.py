"""embedding: rows of a table by id."""

from __future__ import annotations

from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, check_range, take_rows


@PaddleKernel
def embedding(ids: Value, weight: Value) -> Value:
    """Composed: gather of whole rows, then the conversion."""
    ids = check_range("embedding.ids", ids, 0, weight.shape[0])
    return take_rows(weight, ids)
