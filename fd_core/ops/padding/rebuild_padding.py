"""rebuild_padding: the hidden states that need logits, out of the ragged stream."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.api.tensor import TensorSpec
from fd_core.ops.checks import check, check_data
from fd_core.ops.schema import EXACT, Array, Case, In, OptIn, OptInOut, Out, op

NAME = "rebuild_padding"


def _case(lens: list[tuple[int, int, int]], hidden: int, offsets: bool, logprob: bool = False) -> Case:
    """`lens`: (this_time, encoder, decoder) of every slot."""
    this, encoder, decoder = (np.array([n[i] for n in lens], np.int32) for i in range(3))
    ends = np.concatenate([[0], np.cumsum(this)]).astype(np.int32)
    rows = int(ends[-1]) - int(np.maximum(encoder - 1, 0).sum()) if offsets else len(lens)
    first = np.concatenate([np.arange(1 if e else t) + 64 * b for b, (t, e, _) in enumerate(lens)])

    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        spare = np.zeros(3, np.int64)
        return {
            "tmp_out": rng.standard_normal((int(ends[-1]), hidden)).astype(dtype),
            "cu_seqlens_q": ends,
            "seq_len_this_time": this,
            "seq_lens_decoder": decoder,
            "seq_lens_encoder": encoder,
            "output_padding_offset": np.concatenate([first - np.arange(rows), spare]).astype(np.int32)
            if offsets
            else None,
            "first_token_out": np.zeros((len(lens), hidden), dtype) if logprob else None,
            "max_input_length": 64,
            "enable_logprob": logprob,
            "num_rows": rows,
        }

    mode = ("offsets" if offsets else "last") + ("-logprob" if logprob else "")
    return Case(f"{len(lens)}x{hidden}-{mode}", args, FLOATS)


_MIXED = [(5, 5, 0), (1, 0, 9), (0, 0, 0), (3, 0, 4), (1, 1, 0)]
CASES = [_case(_MIXED, 24, False), _case(_MIXED, 7, True), _case(_MIXED, 16, True, True)]
CASES += [_case([(1, 0, 21), (20, 20, 0)] * 4, 256, False)]


def _infer(**inputs: Any) -> list[TensorSpec]:
    tmp_out = inputs["tmp_out"]
    return [TensorSpec((inputs["num_rows"], tmp_out.shape[1]), tmp_out.dtype)]


def _first_rows(
    ends: Array, encoder: Array, tokens: int, offsets: Array | None, max_input_length: int
) -> list[tuple[int, int]]:
    """(slot, first row of the slot's part that this output row belongs to) of every output row."""
    if offsets is None:
        return [(b, int(ends[b])) for b in range(len(encoder))]
    rows = tokens - int(np.maximum(encoder - 1, 0).sum())
    enough = len(offsets) >= rows
    check(enough, NAME, "output_padding_offset", f"at least {rows} offsets", len(offsets))
    found = []
    for r in range(rows):
        o = r + int(offsets[r])
        b = o // max_input_length
        inside = 0 <= b < len(encoder)
        check_data(inside, NAME, "output_padding_offset", f"slots in [0, {len(encoder)})", f"{b} at {r}")
        found.append((b, o - (b * max_input_length - int(ends[b]))))
    return found


@op(family="padding", infer=_infer, cases=CASES, tolerance=EXACT)
def rebuild_padding(
    tmp_out: In,
    cu_seqlens_q: In,
    seq_len_this_time: In,
    seq_lens_decoder: In,
    seq_lens_encoder: In,
    output_padding_offset: OptIn,
    first_token_out: OptInOut,
    max_input_length: int,
    enable_logprob: bool,
    num_rows: int,
    out: Out,
) -> None:
    """out = for every slot the hidden state of its last token, or the tokens that need logits.

    tmp_out [T, E] float32 | bfloat16 | float16; cu_seqlens_q [B + 1] and the three lengths [B] int32;
    s = seq_lens_encoder[b] - 1 in a prefill, else 0. A slot with nothing this step, or with neither
    encoder nor decoder tokens, gives a row of zeros.

    Without output_padding_offset: num_rows = B, out[b] = tmp_out[cu_seqlens_q[b] + s].
    With it ([>= num_rows] int32, speculative decoding): num_rows = T - sum(max(encoder - 1, 0));
    o = r + output_padding_offset[r], b = o // max_input_length,
    out[r] = tmp_out[src], src = o - (b max_input_length - cu_seqlens_q[b]) + s; with enable_logprob,
    prefills also give first_token_out[b] = tmp_out[src - 1] ([B, E], required then) where src > 0.

    num_rows is the caller's count (so the device is not read for it); a wrong one, or an index outside
    tmp_out, is a ValueError before anything is written. Specification ops-attention-kv §1.
    """
    this, decoder, encoder = (
        a.reshape(-1) for a in (seq_len_this_time, seq_lens_decoder, seq_lens_encoder)
    )
    tokens = tmp_out.shape[0]
    firsts = _first_rows(cu_seqlens_q, encoder, tokens, output_padding_offset, max_input_length)
    check_data(len(firsts) == num_rows, NAME, "num_rows", len(firsts), num_rows)
    logprob = enable_logprob and output_padding_offset is not None
    given = not logprob or first_token_out is not None
    check(given, NAME, "first_token_out", "it with enable_logprob", None)
    active = (this != 0) & ((decoder != 0) | (encoder != 0))
    picks = [(r, b, at + max(int(encoder[b]) - 1, 0)) for r, (b, at) in enumerate(firsts) if active[b]]
    for _, b, src in picks:
        check_data(0 <= src < tokens, NAME, "cu_seqlens_q", f"rows in [0, {tokens})", f"{src} for slot {b}")
    out[...] = 0
    for r, b, src in picks:
        out[r] = tmp_out[src]
        if logprob and first_token_out is not None and encoder[b] > 0 and src > 0:
            first_token_out[b] = tmp_out[src - 1]
