"""`fd quantize`: a checkpoint with integer weights, converted once and mapped into memory afterwards."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

HELP = "convert a model folder to integer weights"
CALIBRATION = (
    "int4 weights are rounded by what it does to outputs on a text: a FILE like those the model is for; "
    "self (the default): written by the model; none: to the nearest, in seconds"
)
#: Words for --calibration that are no files.
SELF, NEAREST = "self", "none"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder of a 16-bit checkpoint")
    parser.add_argument("out", help="folder to write (empty or not there yet)")
    parser.add_argument("--method", required=True, help="wint8, w8a8, wint4, w4a8 or a plug-in's")
    parser.add_argument(
        "--group-size", type=int, help="inputs that share an int4 scale: 32, 64, 128; -1: all"
    )
    parser.add_argument(
        "--zero-point", action="store_true", help="int4 weights with a zero point beside each scale"
    )
    parser.add_argument("--lm-head", default="", help="method of the output head (default: int8)")
    parser.add_argument("--experts", default="", help="method of experts (default: that of dense layers)")
    parser.add_argument(
        "--skip", nargs="*", default=[], metavar="LAYER", help="layers that stay as they are"
    )
    parser.add_argument(
        "--layer",
        action="append",
        default=[],
        metavar="PATTERN=METHOD",
        help="another method for some layers",
    )
    parser.add_argument("--calibration", default=SELF, metavar="FILE", help=CALIBRATION)
    parser.add_argument("--calibration-tokens", type=int, default=32768, help="how much of the text to use")
    parser.add_argument("--platform", default="", help="platform that packs (default: the best one found)")


def run(args: argparse.Namespace) -> int:
    from fd_core.quantization.convert import Job, check, convert, rounds_by_effect

    folder, out = Path(args.model), Path(args.out)
    job = Job(folder, out, _config(args), platform=args.platform, progress=True)
    parsed = check(job)
    if args.calibration != NEAREST and rounds_by_effect(job):
        job = replace(job, windows=_windows(args, folder, parsed.max_model_len))
    convert(job)
    before, after = (sum(f.stat().st_size for f in p.glob("*.safetensors")) for p in (folder, out))
    sys.stdout.write(f"{out}: {after / 1e6:.1f} MB of weights, {before / 1e6:.1f} MB before\n")
    return 0


def _config(args: argparse.Namespace) -> Any:
    from fd_core.host.session import open_session
    from fd_core.quantization.config import QuantError, parse_quantization

    layers = dict(pair.partition("=")[::2] for pair in args.layer)
    if not all(layers.values()):
        raise QuantError(f"--layer: want PATTERN=METHOD, have {', '.join(args.layer)}")
    asked = {"quantization": args.method, "skip": args.skip, "layers": layers, "lm_head": args.lm_head}
    if args.experts:
        asked["moe_quant_type"] = args.experts
    if args.group_size is not None:
        asked["group_size"] = args.group_size
    if args.zero_point:
        asked["zero_point"] = True
    known = open_session(args.platform or None).quant_methods
    return parse_quantization(None, json.dumps(asked), known)


def _windows(args: argparse.Namespace, folder: Path, max_model_len: int) -> list[list[int]]:
    """Token ids of the text that calibration reads."""
    from fd_core.quantization.calibrate import WINDOW
    from fd_core.quantization.config import QuantError
    from fd_core.serving.inputs.tokenizer import TextTokenizer

    if args.calibration == SELF:
        return _written(args, folder, max_model_len)
    text = Path(args.calibration)
    if not text.is_file():
        raise QuantError(
            f"--calibration: want a text file, {SELF} or {NEAREST}; have {str(text)!r}: no file"
        )
    ids = TextTokenizer.load(folder).encode(text.read_text(encoding="utf-8"))[: args.calibration_tokens]
    return [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]


def _written(args: argparse.Namespace, folder: Path, max_model_len: int) -> list[list[int]]:
    from fd_core.llm import LLM
    from fd_core.quantization.self_text import LENGTH, written

    tokens, length = args.calibration_tokens, min(LENGTH, max_model_len)
    sys.stdout.write(
        f"{folder}: writes {tokens} tokens to be calibrated on (--calibration none: without)\n"
    )
    sys.stdout.flush()
    llm = LLM(str(folder), platform=args.platform, max_model_len=length, enable_prefix_caching=False)
    return written(llm, tokens, length)
