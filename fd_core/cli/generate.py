"""`fd generate`: complete one prompt, streamed to the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import Any

HELP = "complete a prompt in the terminal"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from fd_core.cli.options import add_engine_options

    parser.add_argument("prompt", help="the text to continue (with --chat: the question)")
    parser.add_argument("--model", default="", help="model folder (default: the embedded model)")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=None)
    parser.add_argument("--top-p", type=float, default=None)
    parser.add_argument("--top-k", type=int, default=None)
    parser.add_argument("--chat", action="store_true", help="use the model's chat template")
    parser.add_argument("--ignore-eos", action="store_true")
    parser.add_argument(
        "--stats", action="store_true", help="print times and the op ledger to standard error"
    )
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    from fd_core.cli.options import engine_config
    from fd_core.llm import LLM

    config = engine_config(args, args.model)
    options = {name: getattr(config, name) for name in config.__struct_fields__ if name != "model"}
    llm = LLM(args.model, **options)
    params = _params(args, llm)
    ask: Any = llm.chat if args.chat else llm.generate
    prompt: Any = [{"role": "user", "content": args.prompt}] if args.chat else args.prompt
    if not args.chat:
        sys.stdout.write(args.prompt)
    count = 0
    for (news,) in ask(prompt, params, stream=True):
        if news is not None:
            count += len(news.outputs[0].token_ids)
            sys.stdout.write(news.outputs[0].text)
            sys.stdout.flush()
    sys.stdout.write("\n")
    if args.stats:
        _report(llm, count)
    return 0


def _params(args: argparse.Namespace, llm: Any) -> Any:
    import msgspec

    given = {k: v for k in ("temperature", "top_p", "top_k") if (v := getattr(args, k)) is not None}
    return msgspec.structs.replace(
        llm.default_params(), max_tokens=args.max_tokens, ignore_eos=args.ignore_eos, **given
    )


def _report(llm: Any, count: int) -> None:
    stats = llm.engine.stats()
    sys.stderr.write(
        f"{count} tokens, {stats.steps} steps, last step {stats.last_step_seconds * 1e3:.2f} ms\n"
    )
    sys.stderr.write(f"{llm.built.session.ledger}\n")
