"""Models, tokenizing, health, version, metrics, load: the routes that generate nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from fd_core import __version__
from fd_core.observe.metrics import CONTENT_TYPE
from fd_core.serving.errors import RequestError
from fd_core.serving.http.call import Call
from fd_core.serving.inputs.limits import refuse, token_ids
from fd_core.serving.inputs.messages import plain_messages, plain_tools, text_size
from fd_core.serving.inputs.prompts import check_length
from fd_core.serving.protocol.misc import (
    DetokenizeRequest,
    DetokenizeResponse,
    Health,
    Load,
    ModelCard,
    ModelList,
    TokenizeRequest,
    TokenizeResponse,
    Version,
)
from fd_core.serving.state import Phase, Served, ServerState

ALIVE = (Phase.READY, Phase.LEAVING, Phase.DRAINING)


def _card(state: ServerState, served: Served, name: str) -> ModelCard:
    return ModelCard(name, state.started, served.engine.info.max_model_len, root=state.config.model_name)


async def models(state: ServerState, call: Call) -> None:
    served = state.ready()
    await call.reply(ModelList([_card(state, served, name) for name in state.config.model_names]))


async def model(state: ServerState, call: Call) -> None:
    served = state.ready()
    name = state.check_model(call.scope["path_params"]["model"])
    await call.reply(_card(state, served, name))


async def tokenize(state: ServerState, call: Call) -> None:
    state.ready()
    request = await call.json(TokenizeRequest, state.config)
    served = state.ready()
    state.check_model(request.model)
    ids = await asyncio.to_thread(_tokenize, state, served, request)
    strings = [served.text.tokenizer.token_text(i) for i in ids] if request.return_token_strs else None
    await call.reply(TokenizeResponse(len(ids), served.engine.info.max_model_len, ids, strings))


def _tokenize(state: ServerState, served: Served, request: TokenizeRequest) -> list[int]:
    limits, info = state.config.limits, served.engine.info
    if (request.prompt is None) == (request.messages is None):
        raise refuse(
            "prompt", "either prompt or messages", "both" if request.prompt is not None else "neither"
        )
    if request.prompt is not None:
        check_length("prompt", len(request.prompt), info, limits)
        return served.text.tokenizer.encode(request.prompt, request.add_special_tokens)
    messages = plain_messages(request.messages or [], limits)
    tools = plain_tools(request.tools, limits)
    check_length("messages", text_size(messages, tools), info, limits)
    prompt = served.text.chat_prompt(
        messages,
        tools=tools,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        options=request.chat_template_kwargs,
    )
    return prompt.token_ids


async def detokenize(state: ServerState, call: Call) -> None:
    state.ready()
    request = await call.json(DetokenizeRequest, state.config)
    served = state.ready()
    state.check_model(request.model)
    info = served.engine.info
    most = state.config.limits.chars_per_token * info.max_model_len
    if len(request.tokens) > most:
        raise refuse("tokens", f"at most {most} token ids", len(request.tokens))
    token_ids("tokens", request.tokens, info.vocab_size)
    text = await asyncio.to_thread(served.text.tokenizer.decode, request.tokens, False)
    await call.reply(DetokenizeResponse(text))


async def _health(state: ServerState, call: Call, good: tuple[Phase, ...]) -> None:
    fine = state.phase in good
    status = "ok" if fine else state.phase.value
    progress: dict[str, Any] = state.progress if state.phase is Phase.STARTING else {}
    await call.reply(Health(status, state.detail, progress), 200 if fine else 503)


async def health(state: ServerState, call: Call) -> None:
    """200 while the engine lives, also while draining."""
    await _health(state, call, ALIVE)


async def live(state: ServerState, call: Call) -> None:
    """200 while this process answers and need not be restarted."""
    await _health(state, call, (Phase.STARTING, *ALIVE))


async def ready(state: ServerState, call: Call) -> None:
    """200 where new requests are welcome."""
    await _health(state, call, (Phase.READY,))


async def version(state: ServerState, call: Call) -> None:
    found = Version(__version__)
    if state.served is not None:
        info = state.served.engine.info
        found = Version(
            __version__,
            state.config.model_name,
            info.platform,
            info.device,
            info.dtype,
            info.quantization or None,
            info.max_model_len,
        )
    await call.reply(found)


async def metrics(state: ServerState, call: Call) -> None:
    if not state.config.metrics:
        raise RequestError("metrics are switched off", status=404, code="not_found")
    await call.respond(state.metrics.render(), kind=CONTENT_TYPE.encode())


async def load(state: ServerState, call: Call) -> None:
    stats = state.metrics.engine.stats
    used = stats.blocks_total - stats.blocks_free - stats.blocks_cached
    usage = used / stats.blocks_total if stats.blocks_total else 0.0
    await call.reply(Load(state.admission.inflight, stats.running, stats.waiting, usage))
