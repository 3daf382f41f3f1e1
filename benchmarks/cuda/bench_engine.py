"""Decoding of a random-weight Llama-3-8B on one GPU: this engine, and transformers with torch.compile.

    python benchmarks/cuda/bench_engine.py [--quantization wint4] [--peer] [--no-graphs] [--out FILE]

Per cell: tokens per second from the second token on (scheduler, runner, greedy sampler and token copy are
all in the time), and the share of the limit: bytes of weights and KV cache that a step must read over the
bandwidth of a device-to-device copy measured in the same process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from fd_core.engine.build import build_engine
from fd_core.engine.config import EngineConfig
from fd_core.engine.engine import Engine
from fd_core.engine.request import EngineRequest, SamplingParams
from fd_core.engine.sequence import Sequence

LLAMA3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
#: name -> (batch, tokens of context at the start, decode steps)
CELLS = {"batch1": (1, 512, 256), "batch64": (64, 2048, 64)}
Decode = Callable[[int, int, int], float]


class Ours:
    """The real engine in this process."""

    def __init__(self, folder: Path, quantization: str, graphs: bool) -> None:
        config = EngineConfig(
            model=str(folder),
            platform="cuda",
            load_format="dummy",
            quantization=quantization,
            max_model_len=4096,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            enable_prefix_caching=False,
            enable_graphs=graphs,
        )
        built = build_engine(config)
        self.engine: Engine = built.engine
        self.session = built.session
        self.count = 0

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Seconds for `steps` tokens of each of `batch` sequences."""
        seqs = self.fill(batch, context, steps + batch + 8)  # nobody ends before the last has its share
        done = sum(seq.num_generated for seq in seqs)
        started = time.perf_counter()
        while min(seq.num_generated for seq in seqs) < steps:
            self.engine.step()
        seconds = time.perf_counter() - started
        made = sum(seq.num_generated for seq in seqs) - done
        self.drain()
        return seconds * steps * batch / made

    def fill(self, batch: int, context: int, tokens: int) -> list[Sequence]:
        """Sequences that have their first two tokens and will make `tokens`."""
        rng = np.random.default_rng(context)
        for _ in range(batch):
            self._add(rng.integers(10, 30000, context).tolist(), tokens)
        seqs = [seq for group in self.engine.requests.values() for seq in group]
        while min(seq.num_generated for seq in seqs) < 2:
            self.engine.step()
        return seqs

    def drain(self) -> None:
        while self.engine.has_work:
            self.engine.step()

    def _add(self, ids: list[int], max_tokens: int) -> None:
        self.count += 1
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        request = EngineRequest(request_id=str(self.count), prompt_token_ids=ids, params=params)
        self.engine.add_request(request)


class Peer:
    """transformers with a static cache, its forward compiled with CUDA graphs. One shape a process: another
    would be compiled for any size, which is slower."""

    def __init__(self, folder: Path, room: int) -> None:
        """`room`: keys that the cache holds. All of it takes part in the attention of each step."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

        self.torch = torch
        config = AutoConfig.from_pretrained(folder)
        with torch.device("cuda"):
            self.model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        self.cache = StaticCache(config=config, max_cache_len=room)
        self.step = torch.compile(self.model.forward, mode="reduce-overhead", fullgraph=True)

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Seconds for `steps` compiled steps of one token each, after an eager prefill and three more."""
        torch = self.torch
        with torch.no_grad():
            token = self.prefill(torch.randint(10, 30000, (batch, context), device="cuda"))
            token = self.forward(token, 3)
            torch.cuda.synchronize()
            started = time.perf_counter()
            self.forward(token, steps)
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def prefill(self, ids: Any) -> Any:
        """The first new token of each row."""
        self.cache.reset()
        for part in ids.split(512, dim=1):
            out = self.model(part, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1:].argmax(-1)

    def forward(self, token: Any, steps: int) -> Any:
        for _ in range(steps):
            self.torch.compiler.cudagraph_mark_step_begin()
            out = self.step(token, past_key_values=self.cache, use_cache=True)
            token = out.logits[:, -1:].argmax(-1).clone()
        return token


def peer_cell(folder: Path, rate: float, repeats: int, name: str) -> dict[str, Any]:
    LLAMA3_8B.update(json.loads((folder / "config.json").read_text()))
    _, context, steps = CELLS[name]
    return measure(Peer(folder, context + steps + 8).decode, rate, 16, repeats, [name])


def peers(folder: Path, rate: float, repeats: int, cells: list[str]) -> dict[str, Any]:
    """Each cell in a process of its own, whose memory is free again before our engine takes its share."""
    found: dict[str, Any] = {}
    for name in cells:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as one:
            found |= one.submit(peer_cell, folder, rate, repeats, name).result()
        print(name, "transformers", found[name], flush=True)
    return found


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers")}


def step_bytes(config: dict[str, Any], batch: int, context: float, weight_bits: float) -> float:
    """What one decode step has to read: all weights but the embedding table, and the KV cache."""
    hidden, ffn, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    block = hidden * (2 * hidden + 2 * kv + 3 * ffn)
    weights = layers * block * weight_bits / 8 + config["vocab_size"] * hidden * min(weight_bits, 16) / 8
    return float(weights + batch * context * layers * 2 * kv * 2)


def measure(
    decode: Decode, rate: float, weight_bits: float, repeats: int, cells: list[str]
) -> dict[str, Any]:
    """Tokens per second of each cell: the median of `repeats`, after one run that is not counted."""
    found = {}
    for name in cells:
        batch, context, steps = CELLS[name]
        decode(batch, context, 8)
        seconds = sorted(decode(batch, context, steps) for _ in range(repeats))[repeats // 2]
        limit = step_bytes(LLAMA3_8B, batch, context + steps / 2, weight_bits) / rate
        found[name] = {
            "tokens_per_second": round(batch * steps / seconds, 1),
            "milliseconds_per_step": round(seconds / steps * 1e3, 3),
            "share_of_limit": round(limit * steps / seconds, 3),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quantization", default="")
    parser.add_argument("--weight-bits", type=float, default=16, help="bits per weight, for the limit")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--no-graphs", action="store_true")
    parser.add_argument("--cells", nargs="+", default=list(CELLS))
    parser.add_argument(
        "--layers", type=int, default=LLAMA3_8B["num_hidden_layers"], help="fewer: quick look"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    LLAMA3_8B["num_hidden_layers"] = args.layers
    folder = Path(tempfile.mkdtemp(prefix="llama3-8b-"))
    (folder / "config.json").write_text(json.dumps(LLAMA3_8B))
    from fd_core.host.session import open_session
    from fd_core.testkit.ceilings import copy_rate

    rate = copy_rate(open_session("cuda"))
    theirs = peers(folder, rate, args.repeats, args.cells) if args.peer else {}
    ours = Ours(folder, args.quantization, not args.no_graphs)
    result: dict[str, Any] = {"device": ours.session.device.name, "copy_bytes_per_second": round(rate)}
    result["quantization"] = args.quantization or "none (bfloat16)"
    result["ours"] = measure(ours.decode, rate, args.weight_bits, args.repeats, args.cells)
    print(json.dumps(result), flush=True)
    if args.peer:
        result["transformers"] = {"versions": versions(), **theirs}
        for name, row in theirs.items():
            row["ours_over_it"] = round(
                result["ours"][name]["tokens_per_second"] / row["tokens_per_second"], 2
            )
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
