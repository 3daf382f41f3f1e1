"""Token ids to text, piece by piece, never cutting a character."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fd_core.serving.inputs.stop import StopMatcher
from fd_core.serving.inputs.tokenizer import TextTokenizer

BROKEN = "\ufffd"
WINDOW = 16  # tokens without a whole character after which bytes are shown as they are
TAIL = 5  # prompt tokens that give the first new token its left context


class TokenDecoder:
    """Incremental decoding: a token's text is what it adds to the text of its neighbours."""

    def __init__(
        self, tokenizer: TextTokenizer, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window = list(prompt_ids[-TAIL:])
        self._shown = self._decode()
        if self._shown.endswith(BROKEN):
            self._window, self._shown = [], ""
        self._settled = len(self._window)

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, self._skip) if self._window else ""

    def step(self, token: int) -> str:
        self._window.append(token)
        text = self._decode()
        waiting = len(self._window) - self._settled
        if (text.endswith(BROKEN) or len(text) <= len(self._shown)) and waiting < WINDOW:
            return ""
        return self._settle(text)

    def flush(self) -> str:
        """The rest, incomplete characters included (as U+FFFD)."""
        return self._settle(self._decode()) if len(self._window) > self._settled else ""

    def _settle(self, text: str) -> str:
        new = text[len(self._shown) :]
        self._window = self._window[self._settled :]
        self._settled = len(self._window)
        self._shown = self._decode()
        return new


class Detokenizer:
    """One completion's text: decoding, then stop strings.

    Text of the first `min_tokens` tokens is not searched for stop strings. `num_tokens` counts the
    tokens up to and including the one that completed a stop string.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        prompt_ids: Sequence[int] = (),
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        self._decoder = TokenDecoder(tokenizer, prompt_ids, skip_special_tokens)
        self._stop = StopMatcher(stop, include_stop)
        self._min_tokens = min_tokens
        self.num_tokens = 0

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text."""
        return self._stop.matched

    def feed(self, token_ids: Iterable[int]) -> str:
        """Text to show now; tokens after a stop string are ignored."""
        pieces: list[str] = []
        for token in token_ids:
            if self.stopped is not None:
                break
            self.num_tokens += 1
            pieces.append(self._search(self._decoder.step(token)))
        return "".join(pieces)

    def count(self, tokens: int) -> None:
        """Tokens that have no text (a stop token that is not shown)."""
        self.num_tokens += tokens

    def finish(self) -> str:
        """The rest of the text when the completion is over."""
        if self.stopped is not None:
            return ""
        text = self._search(self._decoder.flush())
        return text + self._stop.flush()

    def _search(self, text: str) -> str:
        return text if self.num_tokens <= self._min_tokens and text else self._stop.feed(text)
