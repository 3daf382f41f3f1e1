"""get_padding_offset: padded ids to the ragged token stream and its indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import int32, int64
from fd_core.api.tensor import TensorSpec
from fd_core.ops.checks import check, check_data
from fd_core.ops.schema import EXACT, Array, Case, In, OptIn, Out, op

#: Token id of the positions that no slot fills.
PADDING_ID = 2


def _case(lens: list[int], width: int, spare: int, drafts: int = 0, cached: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        slots = len(lens)
        encoder = np.array([n if n > drafts else 0 for n in lens], np.int32)
        return {
            "input_ids": rng.integers(0, 1000, (slots, width)),
            "seq_len": np.array(lens, np.int32),
            "draft_tokens": rng.integers(0, 1000, (slots, drafts)) if drafts else None,
            "seq_lens_encoder": encoder if drafts else None,
            "seq_lens_decoder": rng.integers(0, 50, slots).astype(np.int32) if cached else None,
            "cpu_token_num": sum(lens) + spare,
        }

    name = f"{len(lens)}x{width}-spare{spare}-draft{drafts}" + ("-cached" if cached else "")
    return Case(name, args, (int64,))


CASES = [_case([], 4, 0), _case([], 4, 2), _case([4, 3, 6], 10, 0), _case([0, 5, 0, 1], 5, 3)]
CASES += [_case([3, 8, 1, 0], 9, 2, drafts=3, cached=True), _case([0, 0], 3, 0, cached=True)]


def _infer(
    input_ids: TensorSpec,
    seq_len: TensorSpec,
    draft_tokens: TensorSpec | None,
    seq_lens_encoder: TensorSpec | None,
    seq_lens_decoder: TensorSpec | None,
    cpu_token_num: int,
) -> list[TensorSpec]:
    ends = TensorSpec((input_ids.shape[0] + 1,), int32)
    return [TensorSpec((cpu_token_num,), int64), TensorSpec((cpu_token_num,), int32), ends, ends]


def _slot_ids(
    input_ids: Array, lens: Array, draft_tokens: Array | None, encoder: Array | None
) -> list[Array]:
    """Every slot's ids of this step."""
    name, found = "get_padding_offset", []
    for b, n in enumerate(lens.tolist()):
        source = input_ids
        if draft_tokens is not None and encoder is not None and encoder[b] <= 0:
            source = draft_tokens
        most = source.shape[1]
        check_data(0 <= n <= most, name, "seq_len", f"0 to {most} ids in slot {b}", n)
        found.append(source[b, :n])
    return found


@op(family="padding", infer=_infer, cases=CASES, tolerance=EXACT)
def get_padding_offset(
    input_ids: In,
    seq_len: In,
    draft_tokens: OptIn,
    seq_lens_encoder: OptIn,
    seq_lens_decoder: OptIn,
    cpu_token_num: int,
    x_remove_padding: Out,
    batch_id_per_token: Out,
    cu_seqlens_q: Out,
    cu_seqlens_k: Out,
) -> None:
    """The first seq_len[b] ids of every slot b in a row, with each token's slot and the prefix sums.

    input_ids [B, L] int64; seq_len [B] or [B, 1] int32; draft_tokens [B, M] int64, read instead of
    input_ids where seq_lens_encoder[b] <= 0 (then seq_lens_encoder [B] int32 is required);
    seq_lens_decoder [B] int32: tokens already cached. Outputs: x_remove_padding [cpu_token_num] int64
    and batch_id_per_token [cpu_token_num] int32, where positions beyond sum(seq_len) hold 2 and -1;
    cu_seqlens_q [B + 1] int32 = exclusive prefix sum of seq_len; cu_seqlens_k likewise of
    seq_len + seq_lens_decoder. Always written, with no tokens too.

    ValueError, before anything is written: seq_len[b] outside [0, L] (or [0, M] for drafts),
    sum(seq_len) > cpu_token_num, drafts without seq_lens_encoder. Specification ops-attention-kv §1.
    """
    lens = seq_len.reshape(-1)
    if draft_tokens is not None:
        given = seq_lens_encoder is not None
        check(given, "get_padding_offset", "seq_lens_encoder", "it together with draft_tokens", None)
    encoder = None if seq_lens_encoder is None else seq_lens_encoder.reshape(-1)
    ids = _slot_ids(input_ids, lens, draft_tokens, encoder)
    total = int(lens.sum())
    fits = total <= cpu_token_num
    check_data(fits, "get_padding_offset", "cpu_token_num", f"at least the {total} tokens", cpu_token_num)
    owner, ends_q, ends_k = (a.reshape(-1) for a in (batch_id_per_token, cu_seqlens_q, cu_seqlens_k))
    x_remove_padding[...], owner[...] = PADDING_ID, -1
    x_remove_padding[:total] = np.concatenate([*ids, np.empty(0, np.int64)])
    owner[:total] = np.repeat(np.arange(len(lens)), lens)
    cached = 0 if seq_lens_decoder is None else seq_lens_decoder.reshape(-1)
    ends_q[0] = ends_k[0] = 0
    ends_q[1:], ends_k[1:] = np.cumsum(lens), np.cumsum(lens + cached)
