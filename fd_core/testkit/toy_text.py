"""A tiny model folder without weights: byte-level tokenizer, chat template, generation config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fd_core.serving.inputs.tokenizer import BYTE_OF

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
MERGES = ("t h", "th e", "i n", "e r", "a n", "Ġ a", "Ġ the", "r e", "o n", "Ġ t")
CHAT_TEMPLATE = """\
{%- if tools %}
<|im_start|>system
Tools:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|im_end|>
{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>' + call.function | tojson + '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}
"""


def tokenizer_json() -> str:
    """256 bytes, ten merges, special tokens, tags: about 280 tokens."""
    letters = sorted(BYTE_OF, key=lambda c: BYTE_OF[c])
    merged = [pair.replace(" ", "") for pair in MERGES]
    vocab = {piece: at for at, piece in enumerate([*letters, *merged])}
    added = [_added(len(vocab) + at, text) for at, text in enumerate(SPECIAL + TAGS)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    model = {"type": "BPE", "vocab": vocab, "merges": [m.split(" ") for m in MERGES]}
    found = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": level,
        "decoder": level,
        "post_processor": None,
        "normalizer": None,
        "model": {**model, "dropout": None, "unk_token": None, "byte_fallback": False, "fuse_unk": False},
    }
    return json.dumps(found)


def _added(token: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": text, **flags, "special": text in SPECIAL}


VOCAB_SIZE = 256 + len(MERGES) + len(SPECIAL) + len(TAGS)
EOS = VOCAB_SIZE - len(TAGS) - 1  # <|im_end|>


def write_model_folder(folder: Path) -> Path:
    """Write the files a server reads; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    config = {"eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS]}), encoding="utf-8")
    return folder
