"""What each quantisation method costs in quality: perplexity against 16-bit weights, beside llama.cpp's.

    python benchmarks/quality_quant.py [--model FOLDER] [--texts heldout,fresh,docstrings]
        [--methods wint8,w8a8] [--llamacpp PYTHON [--gguf F16.gguf]] [--out results/quant-quality.json]

Disjoint windows of 1024 tokens, each token scored once; the embedded model unless one is named; texts as
in `texts.py`. `increase` is the relative rise of perplexity per token over the same engine's 16 bits.
A record that exists keeps the rows of other methods; --methods "" measures the peer alone.

Rows with -zero have zero points beside the scales. Those ending in -self are checkpoints made by `fd
quantize`, in -cal by its --calibration with text that is not scored; the others are rounded to the nearest
while loading. llama.cpp's rows come from the program itself:
PYTHON's environment has llama-cpp-python, gguf, safetensors and ml_dtypes, and the file is made by
make_gguf.py; `tensors` counts its matrices by type, which tells where the format named was not used.
`rule-q4_0` and `rule-q8_0` are its formats by their published rules (32 weights to a float16 scale: 4.5
and 8.5 bits) in float32 arithmetic with a 16-bit head: what the format alone costs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import texts
from ceilings import machine_facts
from safetensors.numpy import save_file

from fd_core.cli.main import main as fd
from fd_core.engine.build import EMBEDDED
from fd_core.llm import LLM, SamplingParams
from fd_core.loader.tensor_file import TensorFile

HERE = Path(__file__).resolve().parent
WINDOW = 1024
END_OF_TEXT = 0
BLOCK = 32
Array = np.ndarray[Any, Any]
GROUPS = (32, 64, 128)
METHODS = {
    "none": "none",
    "wint8": "wint8",
    "w8a8": "w8a8",
    **{
        f"{name}-g{group}": json.dumps({"quantization": name, "group_size": group})
        for name in ("wint4", "w4a8")
        for group in (*GROUPS, -1)
    },
    **{
        f"{name}-g{group}-zero": json.dumps({"quantization": name, "group_size": group, "zero_point": True})
        for name in ("wint4", "w4a8")
        for group in GROUPS
    },
    "kv-int8": '{"quantization": "mix_quant", "kv_cache_quant_type": "int8"}',
}
#: Options of `fd quantize`, less the calibration text: the model's own or one that is not scored.
CONVERTED = {
    f"{name}-g{group}{mark}-{text}": ["--method", name, "--group-size", str(group), *option]
    for text in ("self", "cal")
    for mark, option in (("", []), ("-zero", ["--zero-point"]))
    for group in GROUPS
    for name in ("wint4", "w4a8")
}
RULES = ("rule-q4_0", "rule-q8_0")
LLAMACPP = ("f16", "q8_0", "q4_0", "q4_1", "q4_k_m")
Windows = dict[str, list[list[int]]]
Perplexity = dict[str, float]


def windows_of(model: str, names: list[str], characters: int) -> Windows:
    encode = LLM(model).tokenizer.encode
    ids = {name: encode(texts.text(name, characters)) for name in names}
    return {
        name: [[END_OF_TEXT, *tokens[i : i + WINDOW]] for i in range(0, len(tokens), WINDOW)]
        for name, tokens in ids.items()
    }


def perplexity(model: str, windows: Windows, quantization: str) -> Perplexity:
    """exp of the mean negative log-probability of a token, for each text."""
    llm = LLM(model, quantization=quantization, enable_prefix_caching=False)
    return {name: _perplexity(llm, parts) for name, parts in windows.items()}


def _perplexity(llm: LLM, windows: list[list[int]]) -> float:
    results = llm.generate(windows, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0))
    scores = [p.logprob for r in results for p in r.prompt_logprobs or [] if p is not None]
    if len(scores) != count(windows):
        raise RuntimeError(f"want {count(windows)} scores, have {len(scores)}")
    return math.exp(-math.fsum(scores) / len(scores))


def count(windows: list[list[int]]) -> int:
    """Tokens that are scored."""
    return sum(len(window) - 1 for window in windows)


def llamacpp(python: str, gguf: Path, name: str, windows: Windows, work: Path) -> dict[str, Any]:
    """The peer's answer, with perplexities for its sums."""
    command = [python, "-m", "workers.llamacpp_quality", str(gguf), name, str(work / f"{name}.gguf")]
    request = json.dumps(windows)
    run = subprocess.run(command, cwd=HERE, input=request, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(run.stdout)
    sums = answer.pop("scores")
    return {"perplexity": {t: math.exp(total / count(windows[t])) for t, total in sums.items()}, **answer}


def make_gguf(python: str, model: Path, out: Path) -> Path:
    subprocess.run([python, str(HERE / "make_gguf.py"), str(model), str(out)], check=True)
    return out


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
    file, round_blocks = (
        TensorFile(model / "model.safetensors"),
        {"rule-q4_0": q4_0, "rule-q8_0": q8_0}[rule],
    )
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


def converted(model: Path, options: list[str], text: str, out: Path) -> Path:
    if fd(["quantize", str(model), str(out), *options, "--calibration", text]) != 0:
        raise RuntimeError("fd quantize failed")
    return out


def measure(name: str, model: str, windows: Windows, work: Path) -> Perplexity:
    folder = Path(model) if model else EMBEDDED
    if name in RULES:
        return perplexity(str(by_rule(folder, name, work / name)), windows, "none")
    if name in CONVERTED:
        text = "self" if name.endswith("self") else str(work / "text.txt")
        return perplexity(str(converted(folder, CONVERTED[name], text, work / name)), windows, "")
    return perplexity(model, windows, METHODS[name])


def ours(args: argparse.Namespace, windows: Windows, work: Path) -> Iterator[dict[str, Any]]:
    base = perplexity(args.model, windows, "none") if args.methods else {}
    for name in filter(None, args.methods.split(",")):
        found = base if name == "none" else measure(name, args.model, windows, work)
        yield {"method": name, "perplexity": found, "increase": increase(found, base)}


def peers(args: argparse.Namespace, windows: Windows, work: Path) -> Iterator[dict[str, Any]]:
    gguf = args.gguf or make_gguf(
        args.llamacpp, Path(args.model) if args.model else EMBEDDED, work / "f16.gguf"
    )
    base: Perplexity = {}
    for name in LLAMACPP:
        found = llamacpp(args.llamacpp, gguf, name, windows, work)
        base = base or found["perplexity"]
        yield {"method": f"llama.cpp {name}", "increase": increase(found["perplexity"], base), **found}


def increase(found: Perplexity, base: Perplexity) -> Perplexity:
    return {name: value / base[name] - 1 for name, value in found.items()}


def merged(record: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The record's rows, those measured now in their places or at the end."""
    old = json.loads(record.read_text())["rows"] if record.exists() else []
    by_name = {row["method"]: row for row in [*old, *rows]}
    return list(by_name.values())


def show(row: dict[str, Any]) -> None:
    cells = [f"{row['perplexity'][t]:9.4f} {row['increase'][t]:+8.3%}" for t in row["perplexity"]]
    print(f"{row['method']:18}", *cells, row.get("tensors", ""), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="")
    parser.add_argument("--texts", default=",".join(texts.NAMES), help="names, or files")
    parser.add_argument("--characters", type=int, default=texts.CHARACTERS, help="of each text at most")
    parser.add_argument("--methods", default=",".join([*METHODS, *CONVERTED, *RULES]))
    parser.add_argument("--llamacpp", default="", metavar="PYTHON")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse()
    windows = windows_of(args.model, args.texts.split(","), args.characters)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "text.txt").write_text(texts.calibration(), encoding="utf-8")
        for row in itertools.chain(
            peers(args, windows, work) if args.llamacpp else (), ours(args, windows, work)
        ):
            rows.append(row)
            show(row)
    if args.out:
        facts = {**machine_facts(), "model": Path(args.model).name or "embedded", "numpy": np.__version__}
        facts["tokens"] = {name: count(parts) for name, parts in windows.items()}
        args.out.write_text(json.dumps({"facts": facts, "rows": merged(args.out, rows)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
