"""Engine-level conformance: a small model with random weights on the platform and on the oracles."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from fd_core.testkit.engine_checks import engine_findings
from fd_core.testkit.harness import Harness, build
from fd_core.testkit.kit import Finding
from fd_core.testkit.trial import CheckFailed

if TYPE_CHECKING:
    from fd_core.host.session import Session

PROMPT = tuple(int(i) for i in np.random.default_rng(7).integers(3, 131, 41))
OTHER = tuple(int(i) for i in np.random.default_rng(8).integers(3, 131, 19))
NEW_TOKENS = 16

#: The family that uses most ops: norms of queries and keys, grouped heads, tied embeddings.
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "torch_dtype": "float32",
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
#: Relative to the largest logit. float32: sums of 96 terms in any order, over three layers. bfloat16
#: and float16: a few roundings of 2^-9 and 2^-12 per layer, and a KV cache in that type.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}

Check = Callable[[Harness, Harness, float], None]


def logits_of_a_prompt(mine: Harness, oracle: Harness, tolerance: float) -> None:
    """One step over a whole prompt."""
    _close(mine.logits("prompt", PROMPT), oracle.logits("prompt", PROMPT), tolerance)


def logits_of_chunks_and_batches(mine: Harness, oracle: Harness, tolerance: float) -> None:
    """The prompt in chunks beside another text: prefill and decode in the same steps."""
    cuts = ((0, 9), (9, 10), (10, 40), (40, 41))
    for number, (start, stop) in enumerate(cuts):
        work = [("other", OTHER[number * 4 : number * 4 + 4]), ("mixed", PROMPT[start:stop])]
        for got, want in zip(mine.step(work), oracle.step(work), strict=True):
            _close(got, want, tolerance)


def greedy_text(mine: Harness, oracle: Harness, tolerance: float) -> None:
    """Token by token along the oracles' text; another token is wrong unless the two are that close."""
    ids: Sequence[int] = PROMPT
    for position in range(NEW_TOKENS):
        got, want = (harness.step([("text", ids)])[0][-1] for harness in (mine, oracle))
        token, other = int(want.argmax()), int(got.argmax())
        gap = float(want[token] - want[other])
        if gap > 2 * tolerance * float(np.abs(want).max()):
            raise CheckFailed(f"token {position}: want {token}, have {other}, {gap:g} below it")
        ids = (token,)


CHECKS: dict[str, Check] = {
    check.__name__: check for check in (logits_of_a_prompt, logits_of_chunks_and_batches, greedy_text)
}


def _close(got: Any, want: Any, tolerance: float) -> None:
    error = float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max())
    limit = tolerance * float(np.abs(want).max())
    if not error <= limit:  # NaN is no agreement
        raise CheckFailed(f"logits differ by {error:g}, allowed {limit:g}")


def examine_model(session: Session, dtypes: Sequence[str] = tuple(TOLERANCE)) -> Iterator[Finding]:
    """One finding per check and weight type."""
    from fd_core.host.session import open_session

    oracles = open_session("reference")
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        built = False
        for dtype in dtypes:
            try:
                mine, oracle = (_harness(folder, one, dtype) for one in (session, oracles))
            except Exception as error:
                yield _finding("build", dtype, error)
                continue
            yield from (_judge(check, mine, oracle, dtype) for check in CHECKS)
            built = True
        for check, problem in engine_findings(session, folder) if built else ():
            yield _finding(check, CONFIG["torch_dtype"], problem)


def _harness(folder: Path, session: Session, dtype: str) -> Harness:
    model = build(folder, session, weights=dtype, load_format="dummy", max_num_tokens=64, max_num_seqs=64)
    return Harness(model)


def _judge(name: str, mine: Harness, oracle: Harness, dtype: str) -> Finding:
    try:
        CHECKS[name](mine, oracle, TOLERANCE[dtype])
    except Exception as error:
        return _finding(name, dtype, error)
    return _finding(name, dtype, None)


def _finding(check: str, dtype: str, error: Exception | None) -> Finding:
    status = "pass" if error is None else "fail"
    detail = "" if error is None else f"{type(error).__name__}: {error}"[:600]
    return Finding("(model)", "tiny", dtype, check, status, detail)
