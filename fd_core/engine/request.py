"""What goes into the engine and what comes out, as typed msgpack-able structures.

The same structures cross the process border between server and engine; nothing here is hardware or
HTTP. Token ids are ints in [0, vocabulary); times are seconds of `time.time()`.
"""

from __future__ import annotations

from enum import Enum

import msgspec


class FinishReason(str, Enum):
    """`ABORT` and `ERROR` are never shown to a client as `stop`."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one request samples. `temperature` 0 is argmax; `top_k` 0 and `top_p` 1 are off.

    `seed` None draws one at admission. `stop_token_ids`, `bad_words` (token sequences),
    `allowed_token_ids` and `logit_bias` hold token ids. Strings (`stop`) are matched by the output
    processor, not by the engine. `logprobs`: None or the number of alternatives per token (0 = only
    the chosen one); `prompt_logprobs` likewise for the prompt.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    bad_words: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    skip_special_tokens: bool = True
    guided: tuple[str, str] | None = None  # (json | regex | choice | grammar, text)


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt to complete `params.n` times. Lower `priority` goes first."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int = 0
    arrival_time: float = 0.0
    cache_salt: str = ""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability of a token and its rank (1 = best), with the best alternatives."""

    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class EngineOutput(msgspec.Struct, kw_only=True, omit_defaults=True):
    """News of one completion (`index` of n) since the last message; exactly one has a finish reason.

    `prompt_logprobs` comes once, with the first message: None for the first prompt token.
    The token that ended a completion is the last of `token_ids` and is named by `stop_token_id`.
    `error` explains finish reason ERROR (or a refusal at admission, then with `refused`).
    """

    request_id: str
    index: int = 0
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    first_token_time: float = 0.0
    queue_time: float = 0.0
    error: str = ""
    refused: bool = False


class EngineStats(msgspec.Struct, kw_only=True):
    """Figures of one moment, for metrics and health."""

    steps: int = 0
    running: int = 0
    waiting: int = 0
    blocks_total: int = 0
    blocks_free: int = 0
    blocks_cached: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    last_step_seconds: float = 0.0
    last_step_time: float = 0.0


class ModelInfo(msgspec.Struct, kw_only=True):
    """What a front end must know of the loaded model."""

    name: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: list[int]
    platform: str
    device: str
    dtype: str
    quantization: str = ""
    max_num_seqs: int = 0
    max_logprobs: int = 20
