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
GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
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


def gguf_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
        }[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"


def write_gguf(path: Path, config: dict[str, Any]) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(path), "qwen3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_tokens(writer, config["vocab_size"])
    for name, value in weights(config):
        writer.add_tensor(gguf_name(name), value if value.ndim == 1 else value.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=False)
    writer.close()


def _add_tokens(writer: Any, count: int) -> None:
    """A vocabulary nobody reads: token ids go in and logits come out."""
    import gguf

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}" for i in range(count)])
    writer.add_token_types([gguf.TokenType.NORMAL] * count)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)


def main() -> None:
    parser = argparse.ArgumentParser(description="random-weight Qwen3-0.6B shape")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gguf", action="store_true", help="also write OUT/model-f16.gguf")
    args = parser.parse_args()
    write_folder(args.out, QWEN3_06B)
    if args.gguf:
        write_gguf(args.out / "model-f16.gguf", QWEN3_06B)


if __name__ == "__main__":
    main()
