"""Random-weight models of real shapes, for speed measurements: a Hugging Face folder and a GGUF twin.

    python benchmarks/make_model.py --out /tmp/bench/qwen3-0.6b [--gguf]        # ~1.2 GB each

The weights are normal with deviation 0.02; matrices are the same numbers in both files (bfloat16 and
float16). `--gguf` needs the package `gguf`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from make_gguf import write_gguf
from safetensors.numpy import save_file

QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Qwen3 checkpoint, in order."""
    hidden, ffn, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, shape in (
            ("input_layernorm", (hidden,)),
            ("self_attn.q_proj", (q, hidden)),
            ("self_attn.k_proj", (kv, hidden)),
            ("self_attn.v_proj", (kv, hidden)),
            ("self_attn.o_proj", (hidden, q)),
            ("self_attn.q_norm", (dim,)),
            ("self_attn.k_norm", (dim,)),
            ("post_attention_layernorm", (hidden,)),
            ("mlp.gate_proj", (ffn, hidden)),
            ("mlp.up_proj", (ffn, hidden)),
            ("mlp.down_proj", (hidden, ffn)),
        ):
            yield f"{layer}{name}.weight", shape
    yield "model.norm.weight", (hidden,)


def weights(config: dict[str, Any], seed: int = 0) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """float32 values that bfloat16 holds exactly."""
    rng = np.random.default_rng(seed)
    for name, shape in shapes(config):
        values = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        yield name, (values + (len(shape) == 1)).astype(ml_dtypes.bfloat16).astype(np.float32)


def write_folder(out: Path, config: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    tensors = {name: value.astype(ml_dtypes.bfloat16) for name, value in weights(config)}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def tokenizer() -> dict[str, Any]:
    """Bytes as tokens 3 .. 258: peers' converters ask for a tokenizer, the measurements use none."""
    from tokenizers.pre_tokenizers import ByteLevel

    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokens = [*names, *sorted(ByteLevel.alphabet())]
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": name, **flags} for i, name in enumerate(names)],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": []},
    }


def write_tokenizer(out: Path) -> None:
    (out / "tokenizer.json").write_text(json.dumps(tokenizer(), indent=1), encoding="utf-8")
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(said, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="random-weight Qwen3-0.6B shape")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gguf", action="store_true", help="also write OUT/model-f16.gguf")
    args = parser.parse_args()
    write_folder(args.out, QWEN3_06B)
    write_tokenizer(args.out)
    if args.gguf:
        write_gguf(args.out / "model-f16.gguf", QWEN3_06B, weights(QWEN3_06B))


if __name__ == "__main__":
    main()
