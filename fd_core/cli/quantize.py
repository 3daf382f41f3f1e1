"""`fd quantize`: a checkpoint with integer weights, converted once and mapped into memory afterwards."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HELP = "convert a model folder to integer weights"
CALIBRATION = "text like that the model is for: int4 weights are rounded by what it does to outputs"


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
    parser.add_argument("--calibration", type=Path, metavar="FILE", help=CALIBRATION)
    parser.add_argument("--calibration-tokens", type=int, default=32768, help="how much of the text to use")
    parser.add_argument("--platform", default="", help="platform that packs (default: the best one found)")


def run(args: argparse.Namespace) -> int:
    from fd_core.quantization.convert import Job, convert

    folder, out = Path(args.model), Path(args.out)
    windows = _windows(folder, args.calibration, args.calibration_tokens) if args.calibration else ()
    convert(Job(folder, out, _config(args), windows, args.platform, progress=True))
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


def _windows(folder: Path, text: Path, limit: int) -> list[list[int]]:
    from fd_core.quantization.calibrate import WINDOW
    from fd_core.serving.inputs.tokenizer import TextTokenizer

    ids = TextTokenizer.load(folder).encode(text.read_text(encoding="utf-8"))[:limit]
    return [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]
