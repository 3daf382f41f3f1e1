"""set_value_by_flags_and_idx: record the token just consumed in the id history."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import int64
from fd_core.ops.checks import check_data
from fd_core.ops.schema import EXACT, Case, In, InOut, op


def _case(slots: int, history: int, width: int) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        encoder = rng.integers(0, width + 1, slots) * rng.integers(0, 2, slots)
        return {
            "pre_ids_all": rng.integers(0, 1000, (slots, history)),
            "input_ids": rng.integers(0, 1000, (slots, width)),
            "seq_lens_this_time": np.ones(slots, np.int32),
            "seq_lens_encoder": encoder.astype(np.int32),
            "seq_lens_decoder": (rng.integers(0, 3, slots) * (encoder == 0)).astype(np.int32),
            "step_idx": rng.integers(-1, history, slots),
            "stop_flags": rng.integers(0, 4, slots) == 0,
        }

    return Case(f"{slots}x{history}x{width}", args, (int64,))


CASES = [_case(0, 4, 4), _case(1, 2, 1), _case(10, 10, 15), _case(2000, 8, 4)]


@op(family="padding", cases=CASES, tolerance=EXACT)
def set_value_by_flags_and_idx(
    pre_ids_all: InOut,
    input_ids: In,
    seq_lens_this_time: In,
    seq_lens_encoder: In,
    seq_lens_decoder: In,
    step_idx: In,
    stop_flags: In,
) -> None:
    """pre_ids_all[b, step_idx[b]] = input_ids[b, encoder - 1] in a prefill, else input_ids[b, 0].

    Slots that are stopped, that have neither encoder nor decoder tokens, or whose step_idx is <= 0 are
    left alone. pre_ids_all [B, Lp] and input_ids [B, Li] int64; lengths [B] int32 (seq_lens_this_time
    is part of the call and not read); step_idx [B] int64; stop_flags [B] bool. ValueError, before
    anything is written: step_idx >= Lp or encoder > Li in a slot that writes.
    Specification ops-attention-kv §1.
    """
    name = "set_value_by_flags_and_idx"
    encoder, decoder = seq_lens_encoder.reshape(-1), seq_lens_decoder.reshape(-1)
    steps, stopped = step_idx.reshape(-1), stop_flags.reshape(-1)
    slots = np.flatnonzero(~stopped & ((encoder != 0) | (decoder != 0)) & (steps > 0))
    columns = np.maximum(encoder - 1, 0)
    history, width = pre_ids_all.shape[1], input_ids.shape[1]
    for b in slots:
        check_data(steps[b] < history, name, "step_idx", f"< {history}", f"{steps[b]} in slot {b}")
        fits = columns[b] < width
        check_data(fits, name, "seq_lens_encoder", f"at most {width}", f"{encoder[b]} in slot {b}")
    pre_ids_all[slots, steps[slots]] = input_ids[slots, columns[slots]]
