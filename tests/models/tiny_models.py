"""Random-weight models of every family, made and saved by transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch makes the reference models")
transformers = pytest.importorskip("transformers", reason="transformers makes the reference models")

torch.set_num_threads(1)  # the models are tiny: a second thread only waits

VOCAB = 131

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


_LLAMA3 = _rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=64)
_WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
_EXPERTS = {
    "moe_intermediate_size": 24,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "head_dim": 16,
}

#: id -> (transformers' class stem, configuration beside the base)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama3": ("Llama", {**_LLAMA3, "tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 8}),
    "llama-linear": ("Llama", _rope("linear", factor=2.0)),
    "llama-dynamic": ("Llama", _rope("dynamic", factor=2.0)),
    "llama-yarn": ("Llama", _YARN),
    "qwen2": ("Qwen2", {"num_attention_heads": 8}),
    "qwen2-window": ("Qwen2", {**_WINDOW, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3-window": ("Qwen3", {"head_dim": 16, "attention_bias": True, **_WINDOW}),
    "ernie4_5": ("Ernie4_5", {"head_dim": 16, "tie_word_embeddings": True}),
    "ernie4_5-biases": ("Ernie4_5", {"head_dim": 8, "use_bias": True, "tie_word_embeddings": False}),
    "qwen3_moe": ("Qwen3Moe", {**_EXPERTS, "norm_topk_prob": True, "mlp_only_layers": [1]}),
    "qwen3_moe-window": ("Qwen3Moe", {**_EXPERTS, "use_sliding_window": True, "sliding_window": 9}),
    "qwen3_moe-sparse": ("Qwen3Moe", {**_EXPERTS, "norm_topk_prob": False, "decoder_sparse_step": 2}),
}


def make(family: str, dtype: str = "float32", seed: int = 0) -> Any:
    """A float32 model whose logits depend on everything: attention that is not uniform, scales that are
    not 1. Its weights are representable in `dtype`."""
    stem, more = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{stem}Config")(**{**_BASE, **more})
    model = getattr(transformers, f"{stem}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            _randomise(name, weight)
            weight.copy_(weight.to(getattr(torch, dtype)).float())
    return model


def _randomise(name: str, weight: Any) -> None:
    if "norm" in name:
        weight.uniform_(0.6, 1.4)
    elif weight.ndim == 1:
        weight.normal_(0.0, 0.3)
    elif "embed_tokens" in name:
        weight.normal_(0.0, 0.5)
    else:
        weight.normal_(0.0, 1.3 / weight.shape[-1] ** 0.5)


def narrowed(model: Any, dtype: str) -> Any:
    """A copy that computes in `dtype`, its rotary frequencies excepted (as when it is loaded so)."""
    half = copy.deepcopy(model)
    for parameter in half.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return half


def save(model: Any, folder: Path, dtype: str = "float32", max_shard_size: str = "1GB") -> Path:
    """The checkpoint with weights of `dtype`; `model` stays as it is."""
    stored = narrowed(model, dtype)
    stored.config.dtype = dtype
    stored.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def reference_logits(model: Any, ids: list[int]) -> Any:
    """[len(ids), vocab] float32, NumPy."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def reference_greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """`count` tokens by argmax over the whole text each time: no cache of the reference is trusted."""
    text = list(ids)
    for _ in range(count):
        text.append(int(reference_logits(model, text)[-1].argmax()))
    return text[len(ids) :]
