"""Chat messages to prompt tokens through the model's template."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError as JinjaError

from fd_core.serving.inputs.budget import Budget, TemplateError, running
from fd_core.serving.inputs.sandbox import Sandbox
from fd_core.serving.inputs.tokenizer import TextTokenizer

MAX_SOURCE = 256 << 10
FAILURES = (JinjaError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError,
            RecursionError, MemoryError, SyntaxError)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """What the template wrote, as text and as tokens."""

    text: str
    token_ids: list[int]


class ChatTemplate:
    """One template. Only the operator and the model folder bring templates, never a request."""

    def __init__(self, source: str, tokenizer: TextTokenizer, variables: Mapping[str, Any]) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"chat template: want at most {MAX_SOURCE} characters, found {len(source)}")
        self.source = source
        self._tokenizer = tokenizer
        self._variables = dict(variables)
        try:
            self._template = Sandbox().from_string(source)
        except FAILURES as error:
            raise TemplateError(f"chat template does not compile: {error}") from error

    def takes(self, name: str) -> bool:
        """Whether the template mentions a variable or tag, say `tools` or `enable_thinking`."""
        return name in self.source

    def render(self, **variables: Any) -> str:
        try:
            budget = Budget(inputs=variables)
            with running(budget):
                return self._template.render({**self._variables, **variables})
        except TemplateError:
            raise
        except FAILURES as error:
            raise TemplateError(f"chat template failed: {type(error).__name__}: {error}"[:500]) from error

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> RenderedPrompt:
        """Render and encode. Special-token spellings in messages and tools stay plain characters."""
        shield = Shield(self._tokenizer)
        shown = shield.cover(list(messages))
        text = self.render(
            **{k: shield.cover(v) for k, v in (options or {}).items()},
            messages=shown,
            tools=shield.cover(list(tools)) if tools else None,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
        )
        if continue_final_message:
            text = _cut_after(text, str(shown[-1].get("content") or ""))
        return RenderedPrompt(shield.uncovered(text), shield.encode(text))


class Shield:
    """Stand-ins for special-token spellings in user text while a template runs over it."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._nonce = secrets.token_hex(8)
        self._originals: list[str] = []

    def cover(self, value: Any) -> Any:
        """A copy of `value` with every spelling in its strings replaced; most values are returned as is."""
        if isinstance(value, str):
            return self._cover_text(value)
        if isinstance(value, Mapping):
            return {self.cover(k): self.cover(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.cover(v) for v in value]
        return value

    def _cover_text(self, text: str) -> str:
        parts = self._tokenizer.split_special(text)
        for at in range(1, len(parts), 2):
            self._originals.append(parts[at])
            parts[at] = self._mark(len(self._originals) - 1)
        return "".join(parts)

    def _mark(self, index: int) -> str:
        return f"\ue000{self._nonce}.{index}\ue001"

    def _pieces(self, text: str) -> list[str]:
        """Template text at even places, covered spellings at odd ones."""
        first, *others = text.split(f"\ue000{self._nonce}.")
        pieces = [first]
        for part in others:
            number, _, rest = part.partition("\ue001")
            if not number.isdigit() or int(number) >= len(self._originals):
                raise TemplateError("the chat template cut a message in the middle of a word")
            pieces += [self._originals[int(number)], rest]
        return pieces

    def uncovered(self, text: str) -> str:
        return "".join(self._pieces(text)) if self._originals else text

    def encode(self, text: str) -> list[int]:
        if not self._originals:
            return self._tokenizer.encode_template(text)
        ids: list[int] = []
        for at, piece in enumerate(self._pieces(text)):
            ids += self._tokenizer.encode(piece) if at % 2 else self._tokenizer.encode_template(piece)
        return ids


def _cut_after(text: str, content: str) -> str:
    """Drop what the template wrote after the last message, so that the model continues it."""
    wanted = content.strip()
    at = text.rfind(wanted)
    if not wanted or at < 0:
        raise TemplateError("continue_final_message: the last message does not appear in the prompt")
    kept = content.rstrip() != content and text.startswith(content.lstrip(), at)
    return text[: at + len(content.lstrip() if kept else wanted)]


def read_template(folder: Path, name: str = "default") -> str | None:
    """The template of a model folder: `chat_template.jinja`, else from `tokenizer_config.json`."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):
        found = {t["name"]: t["template"] for t in found}.get(name)
    return found if isinstance(found, str) else None


def template_variables(folder: Path) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like, as templates expect them."""
    config = read_json(folder / "tokenizer_config.json")
    found = {
        k: v.get("content") if isinstance(v, dict) else v for k, v in config.items() if k.endswith("_token")
    }
    return {k: v for k, v in found.items() if isinstance(v, str)}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no such file."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path}: want a JSON object, found {type(found).__name__}")
    return found
