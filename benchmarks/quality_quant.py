"""What each quantisation method costs in quality: perplexity of held-out text against 16-bit weights.

    python benchmarks/quality_quant.py [--model FOLDER] [--text FILE] [--methods wint8,w8a8]
                                       [--out benchmarks/results/quant-quality.json]

Disjoint windows of 1024 tokens over the first 40 kB, each token scored once; the embedded model and its
own held-out text unless named. `increase` is the relative rise of perplexity per token.

Rows ending in -cal are checkpoints made by `fd quantize --calibration` from the text behind the first
80 kB, which is not scored. `q4_0` and `q8_0` are llama.cpp's formats by their published rules (32 weights
to a float16 scale: 4.5 and 8.5 bits), all linear layers but the head, which stays 16-bit, in float32
arithmetic: a kinder setting than the program's own.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ceilings import machine_facts
from safetensors.numpy import save_file

from fd_core.cli.main import main as fd
from fd_core.engine.build import EMBEDDED
from fd_core.llm import LLM, SamplingParams
from fd_core.loader.tensor_file import TensorFile

WINDOW = 1024
CHARACTERS, CALIBRATION_FROM = 40_000, 80_000
END_OF_TEXT = 0
BLOCK = 32
Array = np.ndarray[Any, Any]
METHODS = {
    "none": "none",
    "wint8": "wint8",
    "w8a8": "w8a8",
    **{
        f"{name}-g{group}": json.dumps({"quantization": name, "group_size": group})
        for name in ("wint4", "w4a8")
        for group in (32, 64, 128, -1)
    },
    "kv-int8": '{"quantization": "mix_quant", "kv_cache_quant_type": "int8"}',
}
CALIBRATED = {
    f"{name}-g{group}-cal": (name, group) for group in (32, 64, 128) for name in ("wint4", "w4a8")
}
RULES = ("q4_0", "q8_0")


def perplexity(model: str, text: str, quantization: str) -> float:
    """exp of the mean negative log-probability of a token."""
    llm = LLM(model, quantization=quantization, enable_prefix_caching=False)
    ids = llm.tokenizer.encode(text)
    windows = [[END_OF_TEXT, *ids[i : i + WINDOW]] for i in range(0, len(ids), WINDOW)]
    results = llm.generate(windows, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0))
    scores = [p.logprob for r in results for p in r.prompt_logprobs or [] if p is not None]
    if len(scores) != len(ids):
        raise RuntimeError(f"want {len(ids)} scores, have {len(scores)}")
    return math.exp(-math.fsum(scores) / len(scores))


def q4_0(blocks: Array) -> Array:
    """The outermost element becomes code -8; the others are cut to 0 .. 15 of x / d + 8.5."""
    at = np.abs(blocks).argmax(1)[:, None]
    d = np.take_along_axis(blocks, at, 1) / np.float32(-8)
    inverse = np.divide(1, d, where=d != 0, out=np.zeros_like(d))
    codes = np.minimum(np.trunc(blocks * inverse + np.float32(8.5)), 15) - 8
    return np.asarray(codes * d.astype(np.float16).astype(np.float32))


def q8_0(blocks: Array) -> Array:
    d = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    inverse = np.divide(1, d, where=d != 0, out=np.zeros_like(d))
    return np.asarray(np.rint(blocks * inverse) * d.astype(np.float16).astype(np.float32))


def by_rule(model: Path, rule: str, out: Path) -> Path:
    """A float32 checkpoint whose linear weights hold what the rule leaves of them."""
    file, round_blocks = TensorFile(model / "model.safetensors"), {"q4_0": q4_0, "q8_0": q8_0}[rule]
    tensors = {}
    for name in file.entries:
        value = file.read(name).astype(np.float32)
        if "_proj." in name:
            value = round_blocks(value.reshape(-1, BLOCK)).reshape(value.shape)
        tensors[name] = np.ascontiguousarray(value)
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}))
    return out


def calibrated(model: Path, name: str, group: int, text: Path, out: Path) -> Path:
    words = ["--method", name, "--group-size", str(group), "--calibration", str(text)]
    if fd(["quantize", str(model), str(out), *words]) != 0:
        raise RuntimeError("fd quantize failed")
    return out


def measure(name: str, args: argparse.Namespace, text: str, work: Path) -> float:
    model = Path(args.model) if args.model else EMBEDDED
    if name in RULES:
        return perplexity(str(by_rule(model, name, work / name)), text, "none")
    if name in CALIBRATED:
        return perplexity(
            str(calibrated(model, *CALIBRATED[name], work / "text.txt", work / name)), text, ""
        )
    return perplexity(args.model, text, METHODS[name])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="")
    parser.add_argument("--text", type=Path, default=EMBEDDED / "heldout.txt")
    parser.add_argument("--methods", default=",".join([*METHODS, *CALIBRATED, *RULES]))
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse()
    whole = args.text.read_text(encoding="utf-8")
    text = whole[:CHARACTERS]
    base = perplexity(args.model, text, "none")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "text.txt").write_text(whole[CALIBRATION_FROM:], encoding="utf-8")
        for name in args.methods.split(","):
            value = base if name == "none" else measure(name, args, text, work)
            rows.append({"method": name, "perplexity": value, "increase": value / base - 1})
            print(f"{name:14} {value:9.4f} {value / base - 1:+8.3%}", flush=True)
    if args.out:
        facts = {**machine_facts(), "model": args.model or "embedded", "text": args.text.name}
        args.out.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
