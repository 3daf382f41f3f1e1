"""text_image_index_out: each token's row in the text and the image buffer."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import int32
from fd_core.ops.schema import EXACT, Case, In, InOut, op


def _case(tokens: int) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        return {
            "token_type_ids": rng.integers(-1, 3, tokens).astype(dtype),
            "text_index": np.full(tokens, -9, dtype),
            "image_index": np.full(tokens, -9, dtype),
        }

    return Case(str(tokens), args, (int32,))


CASES = [_case(0), _case(1), _case(50)]


@op(family="padding", cases=CASES, tolerance=EXACT)
def text_image_index_out(token_type_ids: In, text_index: InOut, image_index: InOut) -> None:
    """text_index[t] = text tokens (type 0) before t; image_index[t] = image tokens (type 1) before t.

    Written only where t is of that type; tokens of other types (padding) count for neither and leave
    both untouched. int32 [T] or [T, 1] each. Specification ops-attention-kv §1.
    """
    kinds = token_type_ids.reshape(-1)
    for kind, index in ((0, text_index.reshape(-1)), (1, image_index.reshape(-1))):
        of_kind = kinds == kind
        index[of_kind] = np.arange(np.count_nonzero(of_kind))
