"""One completion on its way through the engine."""

from __future__ import annotations

import time
from enum import Enum
from typing import Any

from fd_core.engine import block_hash
from fd_core.engine.request import EngineRequest, FinishReason, TokenLogprobs

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / phi: neighbouring seeds and indices land far apart
_SEED_MASK = (1 << 63) - 1


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    SWAPPED = "swapped"
    FINISHED = "finished"


class Sequence:
    """Tokens, progress and blocks of completion `index` of `request`.

    `tokens` = prompt + generated. `num_unread`: tokens sampled on the device behind them that the host has
    not read yet; the last lies in row `unread_row` of the step's results. `num_computed`: tokens whose K
    and V are in the cache, or will be after the steps launched so far. `slot`: the row of the runner's
    persistent state while running. `host_blocks`: where swapped content waits.
    """

    __slots__ = (
        "arrival", "blocks", "cached_tokens", "eos", "error", "finish", "first_token_time", "guided",
        "hashes", "host_blocks", "index", "limit", "num_computed", "num_prompt", "num_remembered",
        "num_unread", "params", "pending_logprobs", "prompt_logprobs", "request", "sampler_row",
        "scheduled_time", "seed", "slot", "status", "stop_token", "tokens", "unread_row",
    )  # fmt: skip

    def __init__(
        self, request: EngineRequest, index: int, limit: int, seed: int, eos: frozenset[int]
    ) -> None:
        self.request = request
        self.params = request.params
        self.index = index
        self.limit = limit  # total tokens at which it stops for length
        self.eos = eos
        self.seed = (seed + index * _GOLDEN) & _SEED_MASK
        self.tokens = list(request.prompt_token_ids)
        self.num_prompt = len(self.tokens)
        self.num_computed = 0
        self.num_unread = 0
        self.unread_row = -1
        self.num_remembered = 0  # leading blocks whose content the pool can find
        self.cached_tokens = 0
        self.blocks: list[int] = []
        self.host_blocks: list[int] = []
        self.hashes: list[bytes] = []
        self.slot = -1
        self.status = Status.WAITING
        self.finish: FinishReason | None = None
        self.stop_token: int | None = None
        self.error = ""
        self.arrival = request.arrival_time or time.time()
        self.scheduled_time = 0.0
        self.first_token_time = 0.0
        self.prompt_logprobs: list[TokenLogprobs | None] = []
        self.pending_logprobs: list[TokenLogprobs] = []
        self.guided: Any = None
        self.sampler_row: Any = None

    @property
    def key(self) -> tuple[int, float, str, int]:
        """Order of service: priority, then arrival."""
        return (self.request.priority, self.arrival, self.request.request_id, self.index)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens that the model has still to see; 1 in steady decoding."""
        return len(self.tokens) + self.num_unread - self.num_computed

    @property
    def in_decode(self) -> bool:
        return self.num_pending == 1 and len(self.tokens) + self.num_unread > self.num_prompt

    @property
    def ends_unread(self) -> bool:
        """Its length limit is reached by a token that is still to be read: it takes part in no step."""
        return self.num_unread > 0 and len(self.tokens) + self.num_unread >= self.limit

    def extend_hashes(self, block_size: int, upto: int) -> None:
        """Name the blocks that are complete within the first `upto` tokens."""
        while (len(self.hashes) + 1) * block_size <= upto:
            start = len(self.hashes) * block_size
            parent = self.hashes[-1] if self.hashes else block_hash.root(self.request.cache_salt)
            self.hashes.append(block_hash.chain(parent, self.tokens[start : start + block_size]))

    def append(self, token: int) -> None:
        """Take a sampled token and settle whether it ends the sequence."""
        if not self.first_token_time:
            self.first_token_time = time.time()
        self.tokens.append(token)
        if self._stops_at(token):
            self.finish, self.stop_token = FinishReason.STOP, token
        elif len(self.tokens) >= self.limit:
            self.finish = FinishReason.LENGTH

    def _stops_at(self, token: int) -> bool:
        if self.num_generated < self.params.min_tokens:
            return False
        return (token in self.eos and not self.params.ignore_eos) or token in self.params.stop_token_ids
