"""text_image_gather_scatter: rows between the mixed stream and the text and image buffers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.ops.checks import check_range
from fd_core.ops.schema import EXACT, Case, In, InOut, op


def _case(tokens: int, hidden: int, is_scatter: bool) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        kinds = rng.integers(-1, 3, tokens).astype(np.int32)
        count = {k: int(np.count_nonzero(kinds == k)) for k in (0, 1)}
        index = {k: np.full(tokens, 1 << 20, np.int32) for k in (0, 1)}
        for k in (0, 1):
            index[k][kinds == k] = rng.permutation(count[k])
        return {
            "input": rng.standard_normal((tokens, hidden)).astype(dtype),
            "text_input": rng.standard_normal((count[0] + 1, hidden)).astype(dtype),
            "image_input": rng.standard_normal((count[1] + 2, hidden)).astype(dtype),
            "token_type_ids": kinds,
            "text_index": index[0],
            "image_index": index[1],
            "is_scatter": is_scatter,
        }

    return Case(f"{tokens}x{hidden}-{'scatter' if is_scatter else 'gather'}", args, FLOATS)


CASES = [_case(t, h, way) for t, h in ((0, 8), (1, 3), (40, 33)) for way in (True, False)]


@op(family="padding", cases=CASES, tolerance=EXACT)
def text_image_gather_scatter(
    input: InOut,
    text_input: InOut,
    image_input: InOut,
    token_type_ids: In,
    text_index: In,
    image_index: In,
    is_scatter: bool,
) -> None:
    """is_scatter: text_input[text_index[t]] = input[t] for type 0, image_input[...] for type 1.

    Otherwise the reverse, into input[t]. Tokens of other types are skipped and their rows stay.
    input [T, H], text_input [Tt, H], image_input [Ti, H] float32 | bfloat16 | float16, alike, any H;
    types and indices int32 [T] or [T, 1]. An index outside its buffer, on a token of its type: ValueError
    before anything is written. With a repeated index in a scatter the last token wins.
    Specification ops-attention-kv §1.
    """
    text, image = text_index.reshape(-1), image_index.reshape(-1)
    sides = ((0, text_input, text, "text_index"), (1, image_input, image, "image_index"))
    chosen = [np.flatnonzero(token_type_ids == kind) for kind in (0, 1)]
    for tokens, (_, buffer, index, argument) in zip(chosen, sides, strict=True):
        check_range("text_image_gather_scatter", argument, index[tokens], 0, buffer.shape[0])
    for tokens, (_, buffer, index, _) in zip(chosen, sides, strict=True):
        if is_scatter:
            buffer[index[tokens]] = input[tokens]
        else:
            input[tokens] = buffer[index[tokens]]
