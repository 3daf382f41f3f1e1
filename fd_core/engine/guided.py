"""Guided decoding: a grammar's state per completion and the vocabulary mask of each step.

Grammars are compiled by llguidance, whose objects never raise for a bad grammar or a wrong token: the
error waits inside while the mask allows a single token. So it is looked for after construction, after
every token and after every mask, and becomes the text of that one request's error.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

Array = np.ndarray[Any, Any]

MAX_TEXT_BYTES = 1 << 20
MAX_ENUM = 5000  # values of one enum or choice: compile time grows with them
MAX_DEPTH = 64  # nesting of a JSON schema
CACHED_GRAMMARS = 256

MAX_LEXER_STATES = 25_000  # 1 to 2 kB each; llguidance's other defaults allow some 15 ms a step


class GuidedError(ValueError):
    """A grammar that cannot be used; the text says why, for the client."""


class GuidedState:
    """One completion's place in its grammar. The mask of the next step is always ready."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._mask = np.zeros(-(-vocab_size // 32), np.int32)
        self.error = self._advance()

    def bitmask(self) -> Array:
        """int32 words [ceil(vocab / 32)]: bit i & 31 of word i >> 5 is set where token i may come next.

        Overwritten by `accept`. Once the grammar is complete only end tokens are allowed.
        """
        return self._mask

    def accept(self, token: int) -> str:
        """Take the sampled token and work out the next mask; an error text, empty if all is well."""
        if not self.error:
            self._matcher.consume_token(token)
            self.error = self._advance()
        return self.error

    @property
    def complete(self) -> bool:
        """Whether what was generated so far satisfies the grammar."""
        return not self.error and bool(self._matcher.is_accepting())

    def _advance(self) -> str:
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        error = str(self._matcher.get_error())
        if not error and not self._mask.any():
            error = "the grammar allows no token of this vocabulary"
        return error


class GuidedCompiler:
    """Grammars for one tokenizer (`tokenizer.json`). The last 256 stay compiled."""

    def __init__(self, tokenizer_file: Path, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self.tokenizer_file = tokenizer_file
        self.vocab_size = vocab_size
        self.eos_token_ids = list(eos_token_ids)
        self._cache: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def start(self, kind: str, text: str) -> GuidedState:
        """The state before the first token. `kind`: json (a schema), regex, choice (a JSON list of
        texts) or grammar (Lark, or GBNF with `::=`). Raises GuidedError."""
        matcher = self._cache.get((kind, text))
        if matcher is None:
            matcher = self._compile(kind, text)
            self._cache[kind, text] = matcher
            if len(self._cache) > CACHED_GRAMMARS:
                self._cache.popitem(last=False)
        self._cache.move_to_end((kind, text))
        state = GuidedState(matcher.deep_copy(), self.vocab_size)
        if state.error:
            raise GuidedError(f"{kind}: {state.error}")
        return state

    def _compile(self, kind: str, text: str) -> Any:
        import llguidance

        grammar = grammar_of(kind, text)
        limits = llguidance.LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise GuidedError(f"{kind}: {matcher.get_error()}")
        return matcher

    @cached_property
    def _tokenizer(self) -> Any:
        """Built at first use: a large vocabulary takes a second."""
        import llguidance
        from tokenizers import Tokenizer

        plain = Tokenizer.from_file(str(self.tokenizer_file))
        plain.no_padding()
        plain.no_truncation()
        try:
            return llguidance.LLTokenizer(
                plain.to_str(), n_vocab=self.vocab_size, eos_token=self.eos_token_ids or None
            )
        except ValueError as error:
            raise GuidedError(f"{self.tokenizer_file}: {error}") from error


def grammar_of(kind: str, text: str) -> str:
    """llguidance's form of a grammar. Raises GuidedError for what is malformed or over a limit."""
    if kind not in _BUILDERS:
        raise GuidedError(f"want one of {', '.join(_BUILDERS)}, have {kind!r}")
    size = len(text.encode())
    if size > MAX_TEXT_BYTES:
        raise GuidedError(f"{kind}: want at most {MAX_TEXT_BYTES} bytes, have {size}")
    try:
        return _BUILDERS[kind](text)
    except GuidedError:
        raise
    except (ValueError, RecursionError) as error:
        raise GuidedError(f"{kind}: {error}") from error


def _json(text: str) -> str:
    from llguidance import LLMatcher

    schema = msgspec.json.decode(text)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise GuidedError(f"json: want a schema (an object), have {text[:40]}")
    _check_schema(schema)
    # Free white space lets a model fill its answer with blanks and never close it.
    options: Any = {"whitespace_flexible": False}
    return LLMatcher.grammar_from_json_schema(msgspec.json.encode(schema).decode(), overrides=options)


def _check_schema(schema: dict[str, Any]) -> None:
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        for node in level:
            if isinstance(node, list) and len(node) > MAX_ENUM:
                raise GuidedError(f"json: want at most {MAX_ENUM} values in a list, have {len(node)}")
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise GuidedError(f"json: want a schema nested at most {MAX_DEPTH} deep, have a deeper one")


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _regex(text: str) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(text)


def _choice(text: str) -> str:
    from llguidance import LLMatcher

    try:
        choices = msgspec.json.decode(text, type=list[str])
    except (msgspec.DecodeError, RecursionError) as error:
        raise GuidedError(f"choice: want a JSON list of texts: {error}") from error
    if not 0 < len(choices) <= MAX_ENUM or "" in choices:
        raise GuidedError(f"choice: want 1 to {MAX_ENUM} texts, none empty, have {len(choices)}")
    quoted = " | ".join(msgspec.json.encode(choice).decode() for choice in choices)
    return LLMatcher.grammar_from_lark(f"start: {quoted}")


def _grammar(text: str) -> str:
    from llguidance import grammar_from

    return grammar_from("grammar", text)


_BUILDERS = {"json": _json, "regex": _regex, "choice": _choice, "grammar": _grammar}
