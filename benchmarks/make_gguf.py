"""A Hugging Face folder of a Llama or Qwen3 model as a float16 GGUF file, for llama.cpp.

    PEER/bin/python benchmarks/make_gguf.py FOLDER OUT.gguf

PEER is an environment with the packages `gguf`, `safetensors` and `ml_dtypes`. The vocabulary has the
right size but no words: token ids go in and logits come out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
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
OUTER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
#: Rows that GGUF's llama architecture wants paired for rotary positions, and the count of their heads.
PAIRED = {"self_attn.q_proj": "head_count", "self_attn.k_proj": "head_count_kv"}


def gguf_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return OUTER_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"


def pairs(weight: Array, heads: int) -> Array:
    """Rows of each head from 0 .. d - 1 to pairs (0, d/2), (1, d/2 + 1), ..."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, config: dict[str, Any], weights: Iterable[tuple[str, Array]]) -> None:
    """`weights`: checkpoint names and float32 values; matrices become float16."""
    import gguf

    architecture = ARCHITECTURES[config["architectures"][0]]
    writer = gguf.GGUFWriter(str(path), architecture)
    _add_sizes(writer, config)
    if architecture == "llama":
        writer.add_rope_dimension_count(config["head_dim"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_tokens(writer, config["vocab_size"])
    for name, value in weights:
        rows = _ordered(name, value, config) if architecture == "llama" else value
        writer.add_tensor(gguf_name(name), rows if rows.ndim == 1 else rows.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=False)
    writer.close()


def _ordered(name: str, value: Array, config: dict[str, Any]) -> Array:
    counts = {
        "head_count": config["num_attention_heads"],
        "head_count_kv": config["num_key_value_heads"],
    }
    role = name.removesuffix(".weight").split(".", 3)[-1]
    return pairs(value, counts[PAIRED[role]]) if role in PAIRED else value


def _add_sizes(writer: Any, config: dict[str, Any]) -> None:
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


def _add_tokens(writer: Any, count: int) -> None:
    import gguf

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}" for i in range(count)])
    writer.add_token_types([gguf.TokenType.NORMAL] * count)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)


def folder_weights(folder: Path) -> Iterator[tuple[str, Array]]:
    """Names and float32 values of a folder's weights."""
    import ml_dtypes  # noqa: F401  bfloat16 for NumPy
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "numpy") as opened:
            for name in opened.keys():  # noqa: SIM118  not a mapping
                yield name, opened.get_tensor(name).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description="a Hugging Face folder as a GGUF file")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    config = json.loads((args.folder / "config.json").read_text(encoding="utf-8"))
    write_gguf(args.out, config, folder_weights(args.folder))


if __name__ == "__main__":
    main()
