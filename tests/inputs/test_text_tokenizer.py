"""Encoding, decoding, and the border between text and control tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from fd_core.serving.inputs.tokenizer import BYTE_OF, TextTokenizer
from fd_core.testkit.toy_text import SPECIAL, TAGS, VOCAB_SIZE, tokenizer_json

TOKENIZER = TextTokenizer(tokenizer_json())


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special_tokens=False) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*SPECIAL, "<|im_", "start|>", "a", " ", "\n"]), max_size=8).map("".join))
def test_user_text_never_becomes_a_special_token(text):
    ids = TOKENIZER.encode(text)
    assert not set(ids) & set(TOKENIZER.special_ids)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_template_text_does():
    ids = TOKENIZER.encode_template("<|im_start|>user")
    assert TOKENIZER.special_ids[ids[0]] == "<|im_start|>"


def test_special_tokens_are_those_marked_so():
    assert tuple(TOKENIZER.special_ids.values()) == SPECIAL
    assert TOKENIZER.vocab_size == VOCAB_SIZE == 256 + 10 + len(SPECIAL + TAGS)


def test_token_bytes_are_exact():
    """Every byte is told as itself, also where it is no character alone."""
    for byte in range(256):
        assert TOKENIZER.token_bytes(byte) == bytes([byte])
    assert TOKENIZER.token_text(0xE4) == "bytes:\\xe4"
    assert TOKENIZER.token_text(65) == "A"
    assert TOKENIZER.token_text(VOCAB_SIZE - 1) == "</tool_call>"
    assert TOKENIZER.token_bytes(10**6) == b""
    assert sorted(BYTE_OF.values()) == list(range(256))


def test_sentencepiece_style_bytes():
    """`<0xE4>` is a byte and the lower one eighth block a space."""
    vocab = {"<unk>": 0, "<0xE4>": 1, "\u2581hi": 2}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    tokenizer = TextTokenizer(made.to_str())
    assert tokenizer.token_bytes(1) == b"\xe4"
    assert tokenizer.token_bytes(2) == b" hi"


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        TextTokenizer.load(tmp_path)
