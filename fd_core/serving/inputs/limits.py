"""Bounds on every list, text and number of a request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fd_core.serving.errors import RequestError


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for. Lengths of texts are in UTF-8 bytes where it says bytes."""

    max_n: int = 64
    max_sequences: int = 1024  # prompts times n
    max_messages: int = 4096
    max_tools: int = 256
    max_stop: int = 16
    max_stop_bytes: int = 256
    max_stop_token_ids: int = 1024
    max_logit_bias: int = 1024
    max_bad_words: int = 128
    max_bad_word_bytes: int = 256
    max_logprobs: int = 20
    max_guide_bytes: int = 64 << 10
    max_choices: int = 5000
    chars_per_token: int = 16


def refuse(param: str, want: str, have: object, code: str = "invalid_value") -> RequestError:
    """The one form of our refusals: field, wanted, found."""
    shown = repr(have)
    shown = shown if len(shown) <= 100 else shown[:97] + "..."
    return RequestError(f"{param}: want {want}, found {shown}", param=param, code=code)


def number(param: str, value: float | None, low: float, high: float, default: float) -> float:
    """`value` within [low, high], or the default where it is absent."""
    if value is None:
        return default
    if not math.isfinite(value) or not low <= value <= high:
        raise refuse(param, f"a number within {low:g}..{high:g}", value)
    return value


def integer(param: str, value: int | None, low: int, high: int, default: int) -> int:
    if value is None:
        return default
    if not low <= value <= high:
        raise refuse(param, f"an integer within {low}..{high}", value)
    return value


def at_most(param: str, items: Sequence[object] | dict[str, float], most: int) -> None:
    if len(items) > most:
        raise refuse(param, f"at most {most} entries", len(items))


def token_ids(param: str, ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """Each id in [0, vocabulary)."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise refuse(param, f"token ids within 0..{vocab_size - 1}", token)
    return tuple(ids)


def text_bytes(param: str, text: str, most: int) -> str:
    if len(text.encode()) > most:
        raise refuse(param, f"at most {most} bytes", text)
    return text
