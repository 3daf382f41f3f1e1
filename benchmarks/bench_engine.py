"""Whole engines on one model: prefill and decode, ours and peers alternately, with the machine's ceilings.

    python benchmarks/make_model.py --out /tmp/bench/qwen3-0.6b --gguf
    fd quantize /tmp/bench/qwen3-0.6b /tmp/bench/qwen3-0.6b-w4a8 --method w4a8 --calibration none
    python benchmarks/bench_engine.py /tmp/bench/qwen3-0.6b \\
        [--peer-python /path/to/venv/bin/python]      # where llama-cpp-python is installed
        [--gguf FILE] [--ctranslate2 PYTHON:FOLDER] [--openvino PYTHON:FOLDER]
        [--onnxruntime PYTHON:FOLDER] [--torch float32]
        [--rounds 5] [--cells prefill512,decode1,...] [--out results.json]

Each engine is a process that loads the model once; in every round each of them runs the cell once, in
turn, with the ceilings measured in between. Reported: medians over rounds, the ratio to the best peer
of the same rounds, and the share of the limit (bytes over bandwidth, operations over peak).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceilings import Ceilings, machine_facts
from peers import Peer, add_arguments, launches


@dataclass(frozen=True)
class Cell:
    """One measurement: `job` for the workers, `tokens` it yields."""

    job: dict[str, Any]
    tokens: int


CELLS = {
    "decode1": Cell({"job": "decode", "batch": 1, "context": 128, "steps": 16}, 16),
    "decode8": Cell({"job": "decode", "batch": 8, "context": 128, "steps": 8}, 64),
    "prefill512": Cell({"job": "prefill", "tokens": 512}, 512),
    "decode1at4096": Cell({"job": "decode", "batch": 1, "context": 4096, "steps": 8}, 8),
}


@dataclass(frozen=True)
class Model:
    """Sizes that bound a run: bytes of weights read in a decode step, of a cached number, and whether
    products are those of int8 codes."""

    config: dict[str, Any]
    weight_bytes: int
    cache_width: int
    integer: bool

    @classmethod
    def of(cls, folder: Path, dtype: str) -> Model:
        """A folder whose output head is its embedding table, so that a step reads the whole file."""
        config = json.loads((folder / "config.json").read_text())
        method = config.get("quantization_config", {}).get("quantization", "")
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        wide = dtype == "float32"
        return cls(config, size * (2 if wide else 1), 4 if wide else 2, method.endswith("a8"))

    def seconds(self, job: dict[str, Any], ceilings: Ceilings) -> float:
        """The least time the machine needs: weights and cache over bandwidth, or operations over peak."""
        c = self.config
        h, ffn, dim, layers = (
            c["hidden_size"],
            c["intermediate_size"],
            c["head_dim"],
            c["num_hidden_layers"],
        )
        heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
        body = layers * (h * dim * (heads + 2 * kv) + heads * dim * h + 3 * h * ffn)
        head, peak = c["vocab_size"] * h, ceilings.dot if self.integer else ceilings.fma
        if job["job"] == "prefill":
            n = job["tokens"]
            attention = layers * heads * dim * 2 * n * n
            work = (2 * body * n + 2 * head) / peak + attention / ceilings.fma
            return max(work, self.weight_bytes / ceilings.read)
        batch, context = job["batch"], job["context"]
        cache = batch * context * layers * 2 * kv * dim * self.cache_width
        work = batch * (2 * (body + head) / peak + layers * heads * dim * 4 * context / ceilings.fma)
        return float(job["steps"] * max((self.weight_bytes + cache) / ceilings.read, work))


def measure(peers: list[Peer], cell: Cell, rounds: int, ceilings: Ceilings) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for peer in peers:
        peer.run(cell.job)
    for _ in range(rounds):
        for peer in peers:
            times[peer.name].append(peer.run(cell.job))
            ceilings.measure()
            ceilings.measure_dot()
    return times


def row(
    name: str, cell: Cell, times: dict[str, list[float]], model: Model, ceilings: Ceilings
) -> dict[str, Any]:
    ours = next(iter(times))
    medians = {peer: cell.tokens / statistics.median(values) for peer, values in times.items()}
    others = [rate for peer, rate in medians.items() if peer != ours]
    limit = cell.tokens / model.seconds(cell.job, ceilings)
    return {
        "cell": name,
        "tokens_per_second": {peer: round(rate, 2) for peer, rate in medians.items()},
        "spread": {
            p: [round(cell.tokens / max(v), 2), round(cell.tokens / min(v), 2)] for p, v in times.items()
        },
        "ratio_to_best_peer": round(medians[ours] / max(others), 3) if others else None,
        "limit_tokens_per_second": round(limit, 2),
        "share_of_limit": round(medians[ours] / limit, 3),
        "read_gb_s": round(ceilings.read / 1e9, 1),
        "fma_gflop_s": round(ceilings.fma / 1e9, 1),
        "dot_gop_s": round(ceilings.dot / 1e9, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="engines side by side")
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = Model.of(args.model, args.dtype)
    ceilings = Ceilings()
    peers = [Peer(launch) for launch in launches(args)]
    rows = []
    try:
        for name in args.cells.split(","):
            ceilings.reset()
            times = measure(peers, CELLS[name], args.rounds, ceilings)
            rows.append(row(name, CELLS[name], times, model, ceilings))
            print(json.dumps(rows[-1]), flush=True)
    finally:
        for peer in peers:
            peer.close()
    result = {"machine": machine_facts(), "python": platform.python_version(), "rounds": args.rounds}
    result |= {"peers": [peer.about for peer in peers], "rows": rows}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
