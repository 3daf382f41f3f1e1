"""What the sampler knows of one running completion, and its token history on the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fd_core.api.tensor import Tensor
from fd_core.engine.request import SamplingParams
from fd_core.engine.transit import Transit

Array = np.ndarray[Any, Any]

#: Added to logits of tokens that must wait (minimum length). Finite, so that such a token still beats
#: those a grammar or a list excludes with -inf.
MASKED = -1e10


@dataclass(slots=True, eq=False)
class RowState:
    """One completion while it runs. `prompt_ids` and `generated_ids` only grow, by the engine's hand.

    `seed` and the number of generated tokens alone key the random numbers. `bitmask`: this step's
    grammar mask, int32 words, set anew before each step (None: no grammar). `eos_ids` are the model's.
    """

    params: SamplingParams
    prompt_ids: list[int]
    generated_ids: list[int]
    seed: int
    eos_ids: tuple[int, ...] = ()
    bitmask: Array | None = None
    needs: Needs = field(init=False)
    tensors: RowTensors | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.needs = Needs.of(self)

    @property
    def position(self) -> int:
        """Tokens generated so far: the index of the one to sample."""
        return len(self.generated_ids)

    @property
    def waits_for_length(self) -> bool:
        return self.position < self.params.min_tokens and self.needs.late_ids.size > 0


@dataclass(frozen=True, slots=True)
class Needs:
    """Which stages a row takes part in; constant over its life, so worked out once.

    `late_ids`: ids that end the completion, not to be drawn before `min_tokens`. `draw`: temperature,
    top_k, top_p, min_p of the draw.
    """

    greedy: bool
    penalties: bool
    bad_words: bool
    bias_ids: Array
    bias_values: Array
    allowed_ids: Array
    late_ids: Array
    draw: tuple[float, int, float, float]

    @classmethod
    def of(cls, row: RowState) -> Needs:
        p = row.params
        ends = set(row.eos_ids) | set(p.stop_token_ids) if p.min_tokens > 0 else set()
        greedy = p.temperature == 0 or p.top_k == 1
        return cls(
            greedy=greedy,
            penalties=(p.repetition_penalty, p.frequency_penalty, p.presence_penalty) != (1, 0, 0),
            bad_words=bool(p.bad_words),
            bias_ids=np.array(list(p.logit_bias), np.int64),
            bias_values=np.array(list(p.logit_bias.values()), np.float32),
            allowed_ids=np.array(p.allowed_token_ids or (), np.int64),
            late_ids=np.array(sorted(ends), np.int64),
            draw=(0.0 if greedy else p.temperature, p.top_k, p.top_p, p.min_p),
        )

    @property
    def edits_logits(self) -> bool:
        """Whether a stage after the grammar mask may change the row's logits."""
        sizes = self.bias_ids.size + self.allowed_ids.size + self.late_ids.size
        return self.penalties or self.bad_words or sizes > 0


class TokenHistory:
    """A growing list of ids on the device; each `sync` uploads only what is new."""

    def __init__(self, transit: Transit, ids: list[int]) -> None:
        self.transit = transit
        self.length = 0
        self.host: Array = np.empty(0, np.int64)
        self._reserve(len(ids))
        self.sync(ids)

    def _reserve(self, length: int) -> None:
        old = self.host[: self.length]
        self.host = np.full(max(64, 1 << max(0, length - 1).bit_length()), -1, np.int64)
        self.host[: old.size] = old
        self.device = self.transit.platform.from_host(self.host)
        self._shared = self.device.ptr == self.host.__array_interface__["data"][0]

    def sync(self, ids: list[int]) -> Tensor:
        """[1, len(ids)] int64 on the device; `ids` continue what was there before."""
        start, stop = min(self.length, len(ids)), len(ids)
        if stop > self.host.size:
            self._reserve(stop)
        self.host[start:stop] = ids[start:]
        self.length = stop
        if not self._shared and stop > start:
            self.transit.send(self.device.slice(start, stop), self.host[start:stop])
        return self.device.slice(0, stop).view(1, stop)


@dataclass(slots=True)
class RowTensors:
    """One row's own device tensors, for the stages that read its history."""

    generated: TokenHistory
    prompt: Tensor  # [1, S] int64, empty when the prompt does not count
    prompt_len: Tensor  # [1, 1] int64
    scores: tuple[Tensor, Tensor, Tensor]  # repetition, frequency, presence: [1, 1] float32
    bad_words: Tensor  # [1, NUM, LEN] int64
    bad_words_len: Tensor  # [1, NUM] int32
    eos: Tensor  # [e] int64

    @classmethod
    def of(cls, row: RowState, transit: Transit) -> RowTensors:
        p, platform = row.params, transit.platform
        prompt = row.prompt_ids if p.repetition_penalty != 1 else []
        words, lengths = pad_words(p.bad_words)

        def score(value: float) -> Tensor:
            return platform.from_host(np.full((1, 1), value, np.float32))

        return cls(
            generated=TokenHistory(transit, row.generated_ids),
            prompt=platform.from_host(np.array(prompt, np.int64).reshape(1, -1)),
            prompt_len=platform.from_host(np.array([[len(prompt)]], np.int64)),
            scores=(score(p.repetition_penalty), score(p.frequency_penalty), score(p.presence_penalty)),
            bad_words=platform.from_host(words),
            bad_words_len=platform.from_host(lengths),
            eos=platform.from_host(np.array(row.eos_ids, np.int64)),
        )


def pad_words(words: tuple[tuple[int, ...], ...]) -> tuple[Array, Array]:
    """[1, NUM, LEN] ids padded with -1, and [1, NUM] lengths."""
    longest = max((len(w) for w in words), default=0)
    ids = np.full((1, len(words), longest), -1, np.int64)
    for i, word in enumerate(words):
        ids[0, i, : len(word)] = word
    return ids, np.array([[len(w) for w in words]], np.int32).reshape(1, -1)


#: Stands for a completion that has ended while its row was on its way; what it draws is not looked at.
IDLE = RowState(SamplingParams(temperature=0.0), [], [], 0)
