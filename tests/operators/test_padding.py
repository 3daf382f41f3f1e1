"""The ragged layout's bookkeeping: fixed examples, random batches, refused indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import TYPES, assert_agrees, assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from providers import PROVIDERS, run, same

bounded = settings(max_examples=25, deadline=None)
everywhere = pytest.mark.parametrize("provider", PROVIDERS)
lens = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.booleans()), max_size=6)


def i32(*values: int) -> Any:
    return np.array(values, np.int32)


def ends(lengths: Any) -> Any:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


# -- get_padding_offset --------------------------------------------------------------------------------

IDS = np.array([[8, 7, 8, 2] + [0] * 6, [4, 5, 5] + [0] * 7, [7, 6, 1, 7, 2, 6] + [0] * 4], np.int64)
NO_OPTIONS: dict[str, Any] = {"draft_tokens": None, "seq_lens_encoder": None, "seq_lens_decoder": None}


@everywhere
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_padding_offset_public_example(provider: str, shape: tuple[int, ...]) -> None:
    given_ = {"input_ids": IDS, "seq_len": i32(4, 3, 6).reshape(shape), "cpu_token_num": 13}
    got = run(provider, "get_padding_offset", **given_, **NO_OPTIONS)
    assert got["x_remove_padding"].tolist() == [8, 7, 8, 2, 4, 5, 5, 7, 6, 1, 7, 2, 6]
    assert got["batch_id_per_token"].tolist() == [0] * 4 + [1] * 3 + [2] * 6
    assert got["cu_seqlens_q"].tolist() == got["cu_seqlens_k"].tolist() == [0, 4, 7, 13]


@everywhere
def test_padding_offset_drafts_cache_and_spare_room(provider: str) -> None:
    got = run(
        provider,
        "get_padding_offset",
        input_ids=IDS,
        seq_len=i32(2, 3, 1),
        draft_tokens=np.array([[91, 92, 93]] * 3, np.int64),
        seq_lens_encoder=i32(0, 3, 0),
        seq_lens_decoder=i32(10, 0, 20),
        cpu_token_num=8,
    )
    assert got["x_remove_padding"].tolist() == [91, 92, 4, 5, 5, 91, 2, 2]
    assert got["batch_id_per_token"].tolist() == [0, 0, 1, 1, 1, 2, -1, -1]
    assert got["cu_seqlens_q"].tolist() == [0, 2, 5, 6]
    assert got["cu_seqlens_k"].tolist() == [0, 12, 15, 36]


@everywhere
def test_padding_offset_without_tokens_is_defined(provider: str) -> None:
    given_ = {"input_ids": IDS, "seq_len": i32(0, 0, 0), "cpu_token_num": 0}
    got = run(provider, "get_padding_offset", **given_, **NO_OPTIONS)
    assert got["cu_seqlens_q"].tolist() == got["cu_seqlens_k"].tolist() == [0, 0, 0, 0]


@bounded
@given(slots=lens, spare=st.integers(0, 3), seed=st.integers(0, 999))
def test_padding_offset_agrees(slots: Any, spare: int, seed: int) -> None:
    rng, n = np.random.default_rng(seed), len(slots)
    counts = i32(*(min(s[0], 4) for s in slots))
    got = assert_agrees(
        "get_padding_offset",
        input_ids=rng.integers(0, 99, (n, 6)),
        seq_len=counts,
        draft_tokens=rng.integers(100, 199, (n, 4)),
        seq_lens_encoder=i32(*(s[0] if s[2] else 0 for s in slots)),
        seq_lens_decoder=i32(*(s[1] for s in slots)),
        cpu_token_num=int(counts.sum()) + spare,
    )
    for b in range(n):
        part = got["x_remove_padding"][got["cu_seqlens_q"][b] : got["cu_seqlens_q"][b + 1]]
        assert ((part >= 100) == (not (slots[b][2] and slots[b][0] > 0))).all()


BAD_OFFSETS: list[tuple[str, dict[str, Any]]] = [
    (r"cpu_token_num: want at least the 13 tokens", {"cpu_token_num": 12}),
    (r"seq_len: want 0 to 10 ids in slot 1, have 11", {"seq_len": i32(1, 11, 0)}),
    (r"seq_len: want 0 to 10 ids in slot 2, have -1", {"seq_len": i32(1, 1, -1)}),
    (r"seq_lens_encoder: want it together with draft_tokens", {"draft_tokens": IDS}),
    (
        r"seq_len: want 0 to 2 ids in slot 0, have 4",
        {"draft_tokens": IDS[:, :2].copy(), "seq_lens_encoder": i32(0, 3, 6)},
    ),
]


@everywhere
@pytest.mark.parametrize(("match", "change"), BAD_OFFSETS)
def test_padding_offset_refuses(provider: str, match: str, change: dict[str, Any]) -> None:
    good = {"input_ids": IDS, "seq_len": i32(4, 3, 6), "cpu_token_num": 13, **NO_OPTIONS}
    assert_refused(provider, "get_padding_offset", ValueError, match, **{**good, **change})


# -- rebuild_padding -----------------------------------------------------------------------------------

#: (this_time, encoder, decoder): a prefill, a decode, an idle slot, two drafts, a one-token prompt.
SLOTS = [(3, 3, 0), (1, 0, 9), (0, 0, 0), (2, 0, 4), (1, 1, 0)]


def rebuild(provider: str, dtype: Any = np.float32, **change: Any) -> Any:
    return run(provider, "rebuild_padding", **rebuild_inputs(dtype, **change))


def rebuild_inputs(dtype: Any = np.float32, **change: Any) -> dict[str, Any]:
    this, encoder, decoder = (i32(*(s[i] for s in SLOTS)) for i in range(3))
    hidden = np.arange(7 * 5).reshape(7, 5).astype(dtype)
    lengths = {"seq_len_this_time": this, "seq_lens_decoder": decoder, "seq_lens_encoder": encoder}
    options = {"output_padding_offset": None, "first_token_out": None, "max_input_length": 10}
    return {
        "tmp_out": hidden,
        "cu_seqlens_q": ends(this),
        **lengths,
        **options,
        "enable_logprob": False,
        "num_rows": 5,
        **change,
    }


#: Rows of the offset form: one of the prefill, one decode, two drafts, one prompt; o = 10 b + i.
OFFSETS = i32(0, 10 - 1, 30 - 2, 31 - 3, 40 - 4, 77)


@everywhere
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_rebuild_last_tokens(provider: str, dtype: Any) -> None:
    inputs = rebuild_inputs(dtype)
    out = rebuild(provider, dtype)["out"]
    want = inputs["tmp_out"][[2, 3, 0, 4, 6]].copy()
    want[2] = 0
    assert same(out, want)


@everywhere
def test_rebuild_by_offsets_with_first_tokens(provider: str) -> None:
    first = np.full((5, 5), -1, np.float32)
    change = {"output_padding_offset": OFFSETS, "first_token_out": first, "enable_logprob": True}
    got, hidden = rebuild(provider, **change), rebuild_inputs()["tmp_out"]
    assert same(got["out"], hidden[[2, 3, 4, 5, 6]])
    assert same(got["first_token_out"][[0, 4]], hidden[[1, 5]])
    assert (got["first_token_out"][1:4] == -1).all()


@everywhere
def test_rebuild_public_sizes(provider: str) -> None:
    """100 tokens of 256, 8 slots, random offsets below 10 and more of them than rows."""
    hidden = np.random.default_rng(0).standard_normal((100, 256)).astype(np.float32)
    this, encoder, decoder = i32(*[1, 20] * 4), i32(*[0, 20] * 4), i32(*[21, 0] * 4)
    offsets = np.random.default_rng(1).integers(0, 10, 80).astype(np.int32)
    change = {"tmp_out": hidden, "cu_seqlens_q": ends(this), "seq_len_this_time": this, "num_rows": 24}
    change |= {"seq_lens_encoder": encoder, "seq_lens_decoder": decoder, "max_input_length": 512}
    out = rebuild(provider, **change, output_padding_offset=offsets)["out"]
    assert same(out, hidden[np.arange(24) + offsets[:24]])


BAD_REBUILD: list[tuple[str, dict[str, Any]]] = [
    (r"num_rows: want 5, have 4", {"num_rows": 4}),
    (r"output_padding_offset: want at least 5 offsets, have 4", {"output_padding_offset": OFFSETS[:4]}),
    (
        r"first_token_out: want it with enable_logprob",
        {"output_padding_offset": OFFSETS, "enable_logprob": True},
    ),
    (r"output_padding_offset: want slots in \[0, 5\)", {"output_padding_offset": i32(0, 0, 0, 0, 99)}),
    (r"cu_seqlens_q: want rows in \[0, 7\)", {"cu_seqlens_q": i32(9, 3, 4, 4, 6, 7)}),
]


@everywhere
@pytest.mark.parametrize(("match", "change"), BAD_REBUILD)
def test_rebuild_refuses(provider: str, match: str, change: dict[str, Any]) -> None:
    assert_refused(provider, "rebuild_padding", ValueError, match, **rebuild_inputs(**change))


# -- positions and histories ---------------------------------------------------------------------------

POSITIONS = "get_position_ids_and_mask_encoder_batch"


@everywhere
@pytest.mark.parametrize(
    ("slots", "room", "want"),
    [(((3, 1, 1), (2, 2, 2)), 8, [1, 2, 3, 2, 3, 0, 0, 0]), (((2, 0, 0),), 2, [0, 1])],
)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_positions_public_examples(
    provider: str, slots: Any, room: int, want: list[int], dtype: Any
) -> None:
    names = ("seq_lens_encoder", "seq_lens_decoder", "seq_lens_this_time")
    given_ = {n: i32(*(s[i] for s in slots)) for i, n in enumerate(names)}
    got = run(provider, POSITIONS, **given_, position_ids=np.zeros(room, dtype))
    assert got["position_ids"].tolist() == want


@everywhere
def test_positions_need_room(provider: str) -> None:
    given_ = {"seq_lens_encoder": i32(3), "seq_lens_decoder": i32(0), "seq_lens_this_time": i32(3)}
    match = r"position_ids: want room for 3 tokens, have 2"
    assert_refused(provider, POSITIONS, ValueError, match, **given_, position_ids=np.zeros(2, np.int32))


def history_inputs(**change: Any) -> dict[str, Any]:
    return {
        "pre_ids_all": np.zeros((6, 4), np.int64),
        "input_ids": np.arange(18).reshape(6, 3),
        "seq_lens_this_time": i32(1, 1, 1, 1, 1, 1),
        "seq_lens_encoder": i32(3, 0, 0, 2, 2, 2),
        "seq_lens_decoder": i32(0, 5, 0, 0, 0, 0),
        "step_idx": np.array([1, 3, 1, 0, -1, 2]),
        "stop_flags": np.array([0, 0, 0, 0, 0, 1], bool),
        **change,
    }


@everywhere
def test_history_corner_cases(provider: str) -> None:
    """Prefill, decode, empty slot, step 0, step -1, stopped."""
    got = run(provider, "set_value_by_flags_and_idx", **history_inputs())["pre_ids_all"]
    want = np.zeros((6, 4), np.int64)
    want[0, 1], want[1, 3] = 2, 3
    assert same(got, want)


@everywhere
@pytest.mark.parametrize(
    ("match", "change"),
    [
        (r"step_idx: want < 4, have 4 in slot 1", {"step_idx": np.array([1, 4, 1, 0, -1, 2])}),
        (
            r"seq_lens_encoder: want at most 3, have 4 in slot 0",
            {"seq_lens_encoder": i32(4, 0, 0, 2, 2, 2)},
        ),
    ],
)
def test_history_refuses(provider: str, match: str, change: dict[str, Any]) -> None:
    assert_refused(provider, "set_value_by_flags_and_idx", ValueError, match, **history_inputs(**change))


# -- rows ----------------------------------------------------------------------------------------------


@bounded
@given(
    picks=st.lists(st.integers(-3, 4), max_size=8),
    inner=st.lists(st.integers(1, 20), max_size=2),
    kind=st.sampled_from([np.uint8, np.float16, np.int64]),
)
def test_gather_agrees(picks: list[int], inner: list[int], kind: Any) -> None:
    src = (np.arange(5 * int(np.prod(inner))) % 251 + 1).reshape(5, *inner).astype(kind)
    out = assert_agrees("gather_tokens", src=src, indices=np.array(picks, np.int32))["out"]
    for row, pick in zip(out, picks, strict=True):
        assert same(np.asarray(row), np.asarray(src[pick] if pick >= 0 else np.zeros_like(src[0])))


@everywhere
def test_gather_refuses(provider: str) -> None:
    match = r"gather_tokens\.indices: want indices in .*, 5\), have 5 at position 1"
    src, indices = np.ones((5, 2), np.float32), np.array([-1, 5], np.int64)
    assert_refused(provider, "gather_tokens", ValueError, match, src=src, indices=indices)


@everywhere
def test_text_scores(provider: str) -> None:
    hidden = np.arange(20, dtype=np.float32).reshape(5, 4)
    slots = {"seq_lens_this_time": i32(2, 3, 0), "cu_seqlens_q": i32(0, 2, 5, 5), "hidden_states": hidden}
    longest = {"max_seq_len": i32(3), "max_seq_len_index": i32(1)}
    all_image = run(provider, "extract_text_token_output", **longest, mm_token_num_len=i32(3), **slots)[
        "out"
    ]
    mixed = run(provider, "extract_text_token_output", **longest, mm_token_num_len=i32(2), **slots)["out"]
    assert same(all_image, np.stack([hidden[1], 0 * hidden[0], 0 * hidden[0] + 1]))
    assert same(mixed, np.stack([hidden[1], hidden[4], 0 * hidden[0] + 1]))
    bad = {**slots, "cu_seqlens_q": i32(0, 2, 6, 6)}
    match = r"cu_seqlens_q: want ends in \[1, 5\]"
    name = "extract_text_token_output"
    assert_refused(provider, name, ValueError, match, **longest, mm_token_num_len=i32(2), **bad)


@everywhere
def test_text_and_image_round_trip(provider: str) -> None:
    kinds, blank = i32(0, 1, -1, 0, 2, 1, 0), np.full(7, -9, np.int32)
    name = "text_image_index_out"
    index = run(provider, name, token_type_ids=kinds, text_index=blank, image_index=blank)
    assert index["text_index"].tolist() == [0, -9, -9, 1, -9, -9, 2]
    assert index["image_index"].tolist() == [-9, 0, -9, -9, -9, 1, -9]
    places = {k: index[k] for k in ("token_type_ids", "text_index", "image_index")}
    stream = np.random.default_rng(0).standard_normal((7, 9)).astype(TYPES[2])
    empty = {"text_input": np.zeros((3, 9), TYPES[2]), "image_input": np.zeros((2, 9), TYPES[2])}
    name = "text_image_gather_scatter"
    parts = run(provider, name, input=stream, **empty, **places, is_scatter=True)
    assert same(parts["text_input"], stream[[0, 3, 6]])
    assert same(parts["image_input"], stream[[1, 5]])
    filled = {k: parts[k] for k in empty}
    back = run(provider, name, input=np.zeros_like(stream), **filled, **places, is_scatter=False)["input"]
    assert same(back[[0, 1, 3, 5, 6]], stream[[0, 1, 3, 5, 6]])
    assert not back[[2, 4]].view(np.uint16).any()


@everywhere
@pytest.mark.parametrize("way", [True, False])
def test_text_and_image_indices_are_checked(provider: str, way: bool) -> None:
    stream = np.ones((2, 3), np.float32)
    places = {"token_type_ids": i32(0, 1), "text_index": i32(0, 7), "image_index": i32(7, 1)}
    buffers = {"text_input": stream[:1].copy(), "image_input": stream[:1].copy()}
    match = r"image_index: want indices in \[0, 1\), have 1"
    name = "text_image_gather_scatter"
    assert_refused(provider, name, ValueError, match, input=stream, **buffers, **places, is_scatter=way)


def merge_inputs(**change: Any) -> dict[str, Any]:
    slots = [(5, 0, 5), (0, 9, 1), (0, 0, 1), (0, 3, 3), (2, 8, 2)]
    encoder, decoder, this = (i32(*(s[i] for s in slots)) for i in range(3))
    a = np.random.default_rng(0).standard_normal((12, 24)).astype(np.float16)
    lengths = {"seq_lens_encoder": encoder, "seq_lens_decoder": decoder, "seq_lens_this_time": this}
    sizes = {"cu_seq_q": ends(this), "head_num": 3, "head_dim": 8, "max_token": 3}
    return {"encoder_res": a, "decoder_res": -a, **lengths, **sizes, **change}


@everywhere
def test_merge_takes_the_decode_rows(provider: str) -> None:
    inputs = merge_inputs()
    want = inputs["encoder_res"].copy()
    want[[5, 7, 8, 9]] *= np.float16(-1)
    assert same(run(provider, "merge_prefill_decode_output", **inputs)["encoder_res"], want)


@everywhere
@pytest.mark.parametrize(
    ("match", "change"),
    [
        (r"max_token: want at least", {"max_token": 2}),
        (r"cu_seq_q: want rows in \[0, 12\)", {"cu_seq_q": i32(0, 5, 6, 10, 10, 12)}),
    ],
)
def test_merge_refuses(provider: str, match: str, change: dict[str, Any]) -> None:
    assert_refused(provider, "merge_prefill_decode_output", ValueError, match, **merge_inputs(**change))


def test_wrong_types_are_refused() -> None:
    match = r"get_padding_offset\.seq_len: want dtype int32, have int64"
    given_ = {"input_ids": IDS, "seq_len": np.array([4, 3, 6]), "cpu_token_num": 13}
    assert_refused("fd-cpu", "get_padding_offset", TypeError, match, **given_, **NO_OPTIONS)
    wide = {k: merge_inputs()[k].astype(np.int32) for k in ("encoder_res", "decoder_res")}
    match = r"encoder_res: want float32, bfloat16 or float16, have int32"
    assert_refused("fd-cpu", "merge_prefill_decode_output", TypeError, match, **merge_inputs(**wide))
