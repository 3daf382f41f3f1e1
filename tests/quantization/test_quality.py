"""What each method costs the embedded model: perplexity on text it has not seen, against 16 bit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from integer import make

from fd_core.cli.main import main
from fd_core.engine.build import EMBEDDED
from fd_core.llm import LLM, SamplingParams

WINDOW = 1024
END_OF_TEXT = 0
#: The most that perplexity may rise. The int4 rows are rounded to the nearest while loading, which costs a
#: model of 6.5 million parameters, trained to saturation, a tenth; CALIBRATED ones by their effect.
BOUNDS = [
    ("wint8", {}, 0.003),
    ("w8a8", {}, 0.003),
    ("wint4", {"group_size": 32}, 0.085),
    ("wint4", {"group_size": 64}, 0.11),
    ("w4a8", {"group_size": 64}, 0.11),
    ("wint4", {"group_size": 64, "lm_head": "wint4"}, 0.14),
]
CALIBRATED = [("wint4", 0.03), ("w4a8", 0.03)]


def perplexity(model: str, quantization: str) -> float:
    """Disjoint windows over the held-out sample, each token scored once."""
    llm = LLM(model, quantization=quantization, enable_prefix_caching=False)
    ids = llm.tokenizer.encode((EMBEDDED / "heldout.txt").read_text(encoding="utf-8")[:40_000])
    windows = [[END_OF_TEXT, *ids[i : i + WINDOW]] for i in range(0, len(ids), WINDOW)]
    results = llm.generate(windows, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0))
    scores = [p.logprob for r in results for p in r.prompt_logprobs or [] if p is not None]
    assert len(scores) == len(ids)
    return math.exp(-math.fsum(scores) / len(scores))


@pytest.fixture(scope="module")
def plain() -> float:
    make("wint8")  # skips where fd-cpu has no library
    return perplexity("", "none")


@pytest.mark.parametrize(("method", "options", "bound"), BOUNDS, ids=str)
def test_loss_of_quality(plain: float, method: str, options: dict[str, object], bound: float) -> None:
    asked = json.dumps({"quantization": method, **options})
    assert perplexity("", asked) / plain - 1 <= bound


@pytest.fixture(scope="module")
def calibrated(plain: float, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model in int4 groups of 64, rounded by its effect on text that is not scored."""
    folder = tmp_path_factory.mktemp("calibrated")
    text = (EMBEDDED / "heldout.txt").read_text(encoding="utf-8")[80_000:]
    (folder / "text.txt").write_text(text, encoding="utf-8")
    words = ["--method", "wint4", "--group-size", "64", "--calibration", str(folder / "text.txt")]
    assert main(["quantize", str(EMBEDDED), str(folder / "model"), *words]) == 0
    return folder / "model"


@pytest.mark.parametrize(("method", "bound"), CALIBRATED)
def test_loss_of_quality_with_calibration(
    plain: float, calibrated: Path, tmp_path: Path, method: str, bound: float
) -> None:
    """Both int4 methods read the same form; the head goes by the method's activations."""
    for file in calibrated.iterdir():
        (tmp_path / file.name).symlink_to(file)
    raw = json.loads((calibrated / "config.json").read_text())
    head = {"wint4": "wint8", "w4a8": "w8a8"}[method]
    raw["quantization_config"] |= {"quantization": method, "lm_head": head}
    raw["quantization_config"]["forms"] = {method: "int4-panels-1", head: "int8-panels-1"}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert perplexity(str(tmp_path), "") / plain - 1 <= bound
