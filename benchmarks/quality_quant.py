"""What each quantisation method costs in quality: perplexity of held-out text against 16-bit weights.

    python benchmarks/quality_quant.py [--model FOLDER] [--text FILE] [--methods wint8,w8a8]
                                       [--out benchmarks/results/quant-quality.json]

Disjoint windows of 1024 tokens over the first 40 kB, each token scored once; the embedded model and its
own held-out text unless named. `increase` is the relative rise of perplexity per token.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from ceilings import machine_facts

from fd_core.engine.build import EMBEDDED
from fd_core.llm import LLM, SamplingParams

WINDOW = 1024
CHARACTERS = 40_000
END_OF_TEXT = 0
METHODS = {
    "none": "none",
    "wint8": "wint8",
    "w8a8": "w8a8",
    **{
        f"{name}-g{group}": json.dumps({"quantization": name, "group_size": group})
        for name in ("wint4", "w4a8")
        for group in (32, 64, 128)
    },
}


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


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="")
    parser.add_argument("--text", type=Path, default=EMBEDDED / "heldout.txt")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse()
    text = args.text.read_text(encoding="utf-8")[:CHARACTERS]
    base = perplexity(args.model, text, "none")
    rows: list[dict[str, Any]] = []
    for name in args.methods.split(","):
        value = base if name == "none" else perplexity(args.model, text, METHODS[name])
        rows.append({"method": name, "perplexity": value, "increase": value / base - 1})
        print(f"{name:12} {value:9.4f} {value / base - 1:+8.3%}", flush=True)
    if args.out:
        facts = {**machine_facts(), "model": args.model or "embedded", "text": args.text.name}
        args.out.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
