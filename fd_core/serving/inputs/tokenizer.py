"""A model folder's tokenizer, with user text and control tokens kept apart."""

from __future__ import annotations

import json
import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


class TextTokenizer:
    """`tokenizers` behind one rule: text never becomes a special token unless a template wrote it.

    Safe to use from several threads.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._marked = _load(source)
        added = self._marked.get_added_tokens_decoder()
        self.special_ids = {i: t.content for i, t in added.items() if t.special}
        self._added = {i: t.content for i, t in added.items()}
        self._special = _alternatives(list(self.special_ids.values()))
        self._decoder = json.dumps(json.loads(source).get("decoder"))
        self.token_bytes = lru_cache(maxsize=65536)(self._token_bytes)

    @classmethod
    def load(cls, folder: str | Path) -> TextTokenizer:
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"tokenizer: want a file tokenizer.json in {folder}, found none")
        return cls(path.read_text(encoding="utf-8"))

    @cached_property
    def _plain(self) -> Any:
        tokenizer = _load(self._source)
        tokenizer.encode_special_tokens = True
        return tokenizer

    @property
    def vocab_size(self) -> int:
        return int(self._marked.get_vocab_size(with_added_tokens=True))

    def find_special(self, text: str) -> list[str]:
        """Special-token spellings that occur in `text`, left to right."""
        return self._special.findall(text) if self._special else []

    def split_special(self, text: str) -> list[str]:
        """`text` cut so that special-token spellings stand alone (at odd places)."""
        return self._special.split(text) if self._special else [text]

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """User text: a special token's spelling in it stays ordinary characters.

        `add_special_tokens` adds what the model's own post-processor adds (a BOS token).
        """
        tokenizer = self._plain if self.find_special(text) else self._marked
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_template(self, text: str) -> list[int]:
        """Text written by a chat template: spellings of special tokens become those tokens."""
        return list(self._marked.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return str(self._marked.decode(ids, skip_special_tokens=skip_special_tokens))

    def token_id(self, text: str) -> int | None:
        found = self._marked.token_to_id(text)
        return None if found is None else int(found)

    def _token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for, also where they are no whole character."""
        if token in self._added:
            return str(self._added[token]).encode()
        piece: str | None = self._marked.id_to_token(token)
        if piece is None:
            return b""
        if '"ByteLevel"' in self._decoder:
            return _from_stand_ins(piece)
        if (found := BYTE_TOKEN.match(piece)) and '"ByteFallback"' in self._decoder:
            return bytes([int(found[1], 16)])
        return piece.replace("\u2581", " ").encode()

    def token_text(self, token: int) -> str:
        """How log-probabilities show a token: its text, or `bytes:\\xNN...` for part of a character."""
        data = self.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{b:02x}" for b in data)


def _from_stand_ins(piece: str) -> bytes:
    known = all(c in BYTE_OF for c in piece)
    return bytes(BYTE_OF[c] for c in piece) if known else piece.encode()


def _load(source: str) -> Any:
    tokenizer = Tokenizer.from_str(source)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _alternatives(texts: list[str]) -> re.Pattern[str] | None:
    if not texts:
        return None
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


def _byte_of() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE vocabularies use for the 256 bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in shown}
    hidden = (b for b in range(256) if b not in shown)
    table.update({chr(256 + i): b for i, b in enumerate(hidden)})
    return table


BYTE_OF = _byte_of()
