"""Everything about a model that is text: tokenizer, chat template, sampling defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fd_core.serving.errors import RequestError
from fd_core.serving.inputs.budget import TemplateError
from fd_core.serving.inputs.chat_template import (
    ChatTemplate,
    RenderedPrompt,
    read_template,
    template_variables,
)
from fd_core.serving.inputs.defaults import GenerationDefaults
from fd_core.serving.inputs.tokenizer import TextTokenizer

PROBE = ({"role": "user", "content": "hello"},)


@dataclass(frozen=True, slots=True)
class TextModel:
    """Used by the server and by the offline `LLM` alike. `template` is None for base models."""

    tokenizer: TextTokenizer
    template: ChatTemplate | None
    defaults: GenerationDefaults

    @classmethod
    def load(cls, folder: str | Path, *, chat_template: str | None = None) -> TextModel:
        """Read a model folder. `chat_template`: a file, or the template itself, in place of the model's.

        A template that fails or breaks its budget on a plain conversation is refused here.
        """
        folder = Path(folder)
        tokenizer = TextTokenizer.load(folder)
        source = template_source(chat_template) if chat_template else read_template(folder)
        template = ChatTemplate(source, tokenizer, template_variables(folder)) if source else None
        if template is not None:
            template.prompt(PROBE)
        return cls(tokenizer, template, GenerationDefaults.load(folder))

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> RenderedPrompt:
        """Messages (plain dicts) to a prompt; raises RequestError on `messages`."""
        if self.template is None:
            raise RequestError(
                "this model has no chat template; use /v1/completions or start with --chat-template",
                param="messages",
                code="no_chat_template",
            )
        try:
            return self.template.prompt(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                options=options,
            )
        except TemplateError as error:
            raise RequestError(str(error), param="messages", code="chat_template_error") from error


def template_source(given: str) -> str:
    """The text of `--chat-template`: a path to a file, or the template itself if it has a `{`."""
    if "{" in given or "\n" in given:
        return given
    path = Path(given)
    if not path.is_file():
        raise FileNotFoundError(f"--chat-template: want a file or a template, found {given!r}")
    return path.read_text(encoding="utf-8")
