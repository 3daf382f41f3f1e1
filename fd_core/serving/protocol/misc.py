"""Models, tokenize, detokenize, health, version, load."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from fd_core.serving.protocol.chat import Message, Tool


class ModelCard(msgspec.Struct):
    id: str
    created: int
    max_model_len: int
    root: str
    object: Literal["model"] = "model"
    owned_by: str = "fd-core"
    parent: str | None = None


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: Literal["list"] = "list"


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False


class TokenizeResponse(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct):
    tokens: list[int]
    model: str | None = None


class DetokenizeResponse(msgspec.Struct):
    prompt: str


class Health(msgspec.Struct):
    """`status`: ok, starting, draining or dead; `detail` says more."""

    status: str
    detail: str = ""
    progress: dict[str, Any] = {}


class Version(msgspec.Struct):
    version: str
    model: str | None = None
    platform: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    max_model_len: int | None = None


class Load(msgspec.Struct):
    server_load: int
    running: int
    waiting: int
    kv_cache_usage: float
