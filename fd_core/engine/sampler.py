"""Sampling of one step: the normative pipeline over ops, each stage only for the rows that need it.

Order: grammar mask; raw log-probabilities are taken; logit bias, allowed tokens; minimum length,
penalties, bad words; temperature and softmax; min-p, top-k, top-p, draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.device import DeviceInfo
from fd_core.api.platform import Platform
from fd_core.api.tensor import Tensor
from fd_core.engine.buffers import Pack, aligned
from fd_core.engine.request import TokenLogprobs
from fd_core.engine.sampling_state import MASKED, RowState, RowTensors
from fd_core.engine.staging import Scratch, Staged
from fd_core.engine.transit import Transit

if TYPE_CHECKING:
    from fd_core.host.dispatch import Dispatch

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class SampleResult:
    """Per row: the token drawn, and its log-probabilities where they were asked for."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]


#: Arrays of log-probability, rank, ids and log-probabilities of the best, on their way to the host.
Scores = tuple[Array, Array, Array, Array]


@dataclass(frozen=True, slots=True)
class Sampling:
    """What was launched for some rows; its arrays are filled when the step's mark has passed.

    `scored`: rows with log-probabilities, and how many alternatives each wants.
    """

    tokens: Array
    scored: list[tuple[int, int]]
    scores: Scores | None


class Sampler:
    """Turns logits into tokens. Its buffers persist, and only what changed is sent to the device.

    A row's token depends on its logits, parameters, history, seed and position, never on the batch.
    `launch` waits for nothing. It reads what the host knows of each row (grammar, history), so it comes
    after the tokens of the step before were read; the model's step may run meanwhile.
    """

    def __init__(
        self,
        ops: Dispatch,
        platform: Platform,
        device: DeviceInfo,
        vocab_size: int,
        max_num_seqs: int,
        transit: Transit | None = None,
    ) -> None:
        self.ops = ops
        self.platform = platform
        self.device = device
        self.vocab_size = vocab_size
        self.max_num_seqs = max_num_seqs
        self.transit = transit or Transit(platform, device)
        self.staged = Staged(self.transit)
        self.scratch = Scratch(platform)
        widest = sum(aligned(max_num_seqs * kind.itemsize) for _, kind in _DRAW)
        self._draws = Pack(self.transit, widest)
        self._rows: list[RowState] = []  # whose draw parameters are staged
        self._fused = _has_fused_draw(ops)
        self._no_ids = platform.from_host(np.empty((1, 0), np.int64))
        self._zero = platform.from_host(np.zeros((1, 1), np.int64))
        self._one = platform.from_host(np.ones((1, 1), np.float32))

    def sample(self, logits: Tensor, rows: list[RowState]) -> SampleResult:
        """`launch`, wait, `collect`: for callers with nothing else to do meanwhile."""
        self.transit.next_step()
        sampling = self.launch(logits, rows)
        self.transit.mark().wait()
        return self.collect(sampling)

    def launch(self, logits: Tensor, rows: list[RowState], out: Tensor | None = None) -> Sampling:
        """Draw one token per row of `logits` [n, vocab] float32, whose contents are lost, into `out`
        [n] int64 (None: memory of the sampler's own)."""
        self._check(logits, rows)
        self._apply_grammars(logits, rows)
        drawing = not all(row.needs.greedy for row in rows)
        scored = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
        raw = self._raw_logits(logits, rows, scored, drawing)
        self._edit_logits(logits, rows)
        if out is None:
            out = self.scratch.get("tokens", (len(rows),), dt.int64)
        if drawing:
            self._draw(logits, rows, out)
        elif rows:
            self.ops.argmax(logits, out)
        wanted = [(i, rows[i].params.logprobs or 0) for i in scored]
        scores = None if raw is None else self._scores(raw, wanted, out)
        return Sampling(self.transit.fetch("tokens", out), wanted, scores)

    def collect(self, sampling: Sampling) -> SampleResult:
        """What `launch` found; the mark behind it must have passed."""
        tokens = sampling.tokens.tolist()
        found: list[TokenLogprobs | None] = [None] * len(tokens)
        if sampling.scores is not None:
            for (i, k), s in zip(sampling.scored, _entries(sampling.scores), strict=True):
                found[i] = TokenLogprobs(s.logprob, s.rank, s.top_ids[:k], s.top_logprobs[:k])
        return SampleResult(tokens, found)

    def score(self, logits: Tensor, targets: list[int], num_top: int) -> list[TokenLogprobs]:
        """Log-probabilities of targets[r] and of the `num_top` best under row r, logits untouched. Waits
        for the device."""
        if not targets:
            return []
        tokens = self.staged.put("targets", np.array(targets, np.int64))
        scores = self._fetch_scores(logits, tokens, num_top)
        self.transit.mark().wait()
        return _entries(scores)

    def _scores(self, raw: Tensor, wanted: list[tuple[int, int]], tokens: Tensor) -> Scores:
        """Of the tokens drawn, which only the device knows yet."""
        if len(wanted) < tokens.shape[0]:
            picked = self.scratch.get("picked", (len(wanted),), dt.int64)
            self.ops.gather_tokens(tokens, self._picks([i for i, _ in wanted]), picked)
            tokens = picked
        return self._fetch_scores(raw, tokens, max(k for _, k in wanted))

    def _fetch_scores(self, logits: Tensor, tokens: Tensor, num_top: int) -> Scores:
        n, k = tokens.shape[0], min(num_top, logits.shape[1])
        own, top = self.scratch.get("own", (n,), dt.float32), self.scratch.get("top", (n, k), dt.float32)
        rank, ids = self.scratch.get("rank", (n,), dt.int64), self.scratch.get("ids", (n, k), dt.int64)
        self.ops.top_logprobs(logits, tokens, k, own, rank, ids, top)
        fetch = self.transit.fetch
        return fetch("own", own), fetch("rank", rank), fetch("ids", ids), fetch("top", top)

    def _check(self, logits: Tensor, rows: list[RowState]) -> None:
        want = (len(rows), self.vocab_size)
        if logits.shape != want or len(rows) > self.max_num_seqs:
            raise ValueError(
                f"sampler: want logits {list(want)} for at most {self.max_num_seqs} rows, "
                f"have {list(logits.shape)}"
            )

    def _apply_grammars(self, logits: Tensor, rows: list[RowState]) -> None:
        guided = [i for i, row in enumerate(rows) if row.bitmask is not None]
        if not guided:
            return
        masks = np.zeros((len(rows), -(-self.vocab_size // 32)), np.int32)
        for i in guided:
            words = rows[i].bitmask
            assert words is not None
            masks[i, : words.size] = words.reshape(-1)[: masks.shape[1]]
        indices = self.staged.put("guided", np.array(guided, np.int32))
        self.ops.apply_token_bitmask(logits, self.staged.put("masks", masks), self.vocab_size, indices)

    def _raw_logits(
        self, logits: Tensor, rows: list[RowState], scored: list[int], drawing: bool
    ) -> Tensor | None:
        """Logits of the scored rows as they are now; copied unless nothing will change them."""
        if not scored:
            return None
        edited = (drawing and not self._fused) or any(rows[i].needs.edits_logits for i in scored)
        if not edited and len(scored) == len(rows):
            return logits
        raw = self.scratch.get("raw", (len(scored), self.vocab_size), dt.float32)
        self.ops.gather_tokens(logits, self._picks(scored), raw)
        return raw

    def _picks(self, rows: list[int]) -> Tensor:
        return self.staged.put("scored", np.array(rows, np.int32))

    def _edit_logits(self, logits: Tensor, rows: list[RowState]) -> None:
        edited = [(i, row) for i, row in enumerate(rows) if row.needs.edits_logits]
        if not edited:
            return
        self._bias(logits, rows)
        self._allow(logits, rows)
        for i, row in edited:
            if row.needs.penalties or row.needs.bad_words:
                self._use_history(logits.slice(i, i + 1), row)

    def _bias(self, logits: Tensor, rows: list[RowState]) -> None:
        """The user's bias, and the minimum length as one."""
        ids, values = [], []
        for row in rows:
            late = row.needs.late_ids if row.waits_for_length else row.needs.late_ids[:0]
            ids.append(np.concatenate([row.needs.bias_ids, late]))
            held = np.full(late.size, MASKED, np.float32)
            values.append(np.concatenate([row.needs.bias_values, held]))
        if any(part.size for part in ids):
            lists = self._ragged("bias", ids)
            self.ops.apply_logit_bias(
                logits, *lists, self.staged.put("bias_values", np.concatenate(values))
            )

    def _allow(self, logits: Tensor, rows: list[RowState]) -> None:
        ids = [row.needs.allowed_ids for row in rows]
        if any(part.size for part in ids):
            self.ops.apply_allowed_tokens(logits, *self._ragged("allowed", ids))

    def _ragged(self, name: str, ids: list[Array]) -> tuple[Tensor, Tensor]:
        offsets = np.zeros(len(ids) + 1, np.int32)
        np.cumsum([part.size for part in ids], out=offsets[1:])
        flat = self.staged.put(name, np.concatenate(ids))
        return self.staged.put(f"{name}_offsets", offsets), flat

    def _use_history(self, logits: Tensor, row: RowState) -> None:
        """Penalties and bad words of one row; `logits` [1, vocab]."""
        if row.tensors is None:
            row.tensors = RowTensors.of(row, self.transit)
        t = row.tensors
        generated = t.generated.sync(row.generated_ids)
        if row.needs.penalties:
            self.ops.get_token_penalty_multi_scores(
                generated, t.prompt, t.prompt_len, logits, *t.scores, self._one,
                self._no_ids, self._zero, self._zero, self._zero, t.eos,
            )  # fmt: skip
        if row.needs.bad_words:
            self.ops.apply_bad_words(logits, generated, t.bad_words, t.bad_words_len, t.eos)

    def _draw(self, logits: Tensor, rows: list[RowState], out: Tensor) -> None:
        n = len(rows)
        pack = self._draws.layout(n) or self._draws.define(n, [(name, (n,), kind) for name, kind in _DRAW])
        host, get = pack.host, pack.device
        if rows != self._rows:  # identity: parameters never change during a row's life
            draws = zip(*(row.needs.draw for row in rows), strict=True)
            for name, values in zip(("temperature", "top_k", "top_p", "min_p"), draws, strict=True):
                host[name][:] = values
            host["seed"][:] = [row.seed for row in rows]
            self._rows = list(rows)
        host["position"][:] = [row.position for row in rows]
        self._draws.send(pack)
        draw = (get["top_k"], get["top_p"], get["min_p"], get["seed"], get["position"], out)
        if self._fused:
            self.ops.sample_from_logits(logits, get["temperature"], *draw)
            return
        self.ops.temperature_softmax(logits, get["temperature"], logits)
        self.ops.sample_top_k_top_p(logits, *draw)


def _has_fused_draw(ops: Dispatch) -> bool:
    """Whether one op draws as well as two: the same tokens from kernels of the same maker."""
    fused, plain = (ops.table.get(name) for name in ("sample_from_logits", "sample_top_k_top_p"))
    return fused is not None and (plain is None or fused.kernel.provider == plain.kernel.provider)


def _entries(scores: Scores) -> list[TokenLogprobs]:
    return [TokenLogprobs(*values) for values in zip(*(s.tolist() for s in scores), strict=True)]


#: Parameters of the draw, one value per row.
_DRAW: list[tuple[str, dt.DType]] = [
    ("top_k", dt.int64),
    ("seed", dt.int64),
    ("position", dt.int64),
    ("temperature", dt.float32),
    ("top_p", dt.float32),
    ("min_p", dt.float32),
]
