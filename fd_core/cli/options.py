"""Engine options on the command line, from the fields of EngineConfig."""

from __future__ import annotations

import argparse
from typing import Any

from fd_core.engine.config import EngineConfig

UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def size(text: str) -> int:
    """Bytes: 1000000, 512M, 4GiB."""
    digits = text.strip().lower().removesuffix("b").removesuffix("i")
    factor = UNITS.get(digits[-1:], 1)
    try:
        return int(float(digits.rstrip("kmg")) * factor)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"want a number of bytes such as 512M or 4G, have {text!r}"
        ) from None


#: flag -> (field, argparse settings). Spellings follow the field's servers.
FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "--platform": ("platform", {"help": "platform to run on (default: the best one found)"}),
    "--device": ("device_index", {"type": int, "help": "index of the device"}),
    "--dtype": (
        "dtype",
        {"choices": ["auto", "bfloat16", "float16", "float32"], "help": "type of the weights"},
    ),
    "--load-format": (
        "load_format",
        {"choices": ["auto", "safetensors", "dummy"], "help": "dummy: random weights"},
    ),
    "--weight-layout": (
        "weight_layout",
        {"choices": ["auto", "out_in", "in_out"], "help": "of linear weights"},
    ),
    "--quantization": ("quantization", {"help": "quantisation method"}),
    "--kv-cache-dtype": (
        "kv_cache_dtype",
        {"choices": ["auto", "bfloat16", "float16", "float32", "int8", "float8_e4m3fn"]},
    ),
    "--attention-backend": ("attention_backend", {"help": "attention backend by name"}),
    "--block-size": ("block_size", {"type": int, "help": "tokens of a KV block"}),
    "--max-model-len": ("max_model_len", {"type": int, "help": "context length in tokens"}),
    "--max-num-seqs": ("max_num_seqs", {"type": int, "help": "sequences of a step"}),
    "--max-num-batched-tokens": ("max_num_batched_tokens", {"type": int, "help": "tokens of a step"}),
    "--kv-cache-memory": ("kv_cache_memory", {"type": size, "help": "bytes of KV cache, for example 2G"}),
    "--gpu-memory-utilization": (
        "memory_utilization",
        {"type": float, "help": "share of the memory to use"},
    ),
    "--swap-space": ("swap_space", {"type": size, "help": "host bytes for preempted requests"}),
    "--async-scheduling": (
        "async_scheduling",
        {"choices": ["auto", "on", "off"], "help": "plan a step while the one before runs"},
    ),
    "--seed": ("seed", {"type": int, "help": "seed of requests that bring none"}),
    "--max-logprobs": ("max_logprobs", {"type": int, "help": "most alternatives a request may ask for"}),
}


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    for flag, (field, settings) in FLAGS.items():
        group.add_argument(flag, dest=field, default=argparse.SUPPRESS, **settings)
    group.add_argument(
        "--no-prefix-caching", dest="enable_prefix_caching", action="store_false", default=argparse.SUPPRESS
    )
    group.add_argument("--no-graphs", dest="enable_graphs", action="store_false", default=argparse.SUPPRESS)


def engine_config(args: argparse.Namespace, model: str) -> EngineConfig:
    """The configuration of the given arguments; what was not given keeps its default."""
    known = {field for field, _ in FLAGS.values()} | {"enable_prefix_caching", "enable_graphs"}
    given = {name: value for name, value in vars(args).items() if name in known}
    return EngineConfig(model=model, show_progress=True, **given)
