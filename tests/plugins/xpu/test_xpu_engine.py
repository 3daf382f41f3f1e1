"""The whole engine on fd-xpu's stand-in: fd-cpu's text, offline and served; reports; another device."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import wait_until_ready
from tests.plugins.broken import Fake

pytest.importorskip("fd_xpu", reason="fd-xpu is not installed")
pytest.importorskip("fd_cpu", reason="fd-cpu is not installed")
pytest.importorskip("paddle", reason="paddlepaddle is not installed")

ROOT = Path(__file__).parents[3]
PROMPTS = ["A decorator is", "The list", "def main():\n", "# Files\n\nThe file", "In Python, a tuple"]
TOKENS = 40
ENVIRONMENT = {**os.environ, "FD_XPU_PLACE": "cpu"}

#: Texts by platform and settings, greedy, in float32 throughout.
SCRIPT = """
import json, sys
from fd_core.llm import LLM, SamplingParams
prompts, tokens = json.loads(sys.argv[1]), int(sys.argv[2])
for settings in map(json.loads, sys.argv[3:]):
    llm = LLM(**settings)
    drawn = SamplingParams(temperature=0.8, top_k=20, top_p=0.9, seed=11, max_tokens=tokens, logprobs=2,
                           repetition_penalty=1.2, bad_words=((602,), (294, 264)), min_tokens=4,
                           logit_bias={5: -3.0})
    greedy = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    texts = [[a.text for a in llm.generate(prompts, params)] for params in (greedy, drawn)]
    print("RESULT", json.dumps(texts))
"""


def generated(*settings: dict[str, Any], env: dict[str, str] | None = None) -> list[Any]:
    """[greedy texts, drawn texts] for each of the settings, in one process."""
    words = [json.dumps(PROMPTS), str(TOKENS), *map(json.dumps, settings)]
    command = [sys.executable, "-c", SCRIPT, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env or ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]


@pytest.fixture(scope="module")
def texts() -> list[Any]:
    common = {"dtype": "float32", "block_size": 16}
    return generated({"platform": "cpu", **common}, {"platform": "xpu", **common})


def test_greedy_text_is_that_of_fd_cpu(texts: list[Any]) -> None:
    on_cpu, on_xpu = (pair[0] for pair in texts)
    assert on_xpu == on_cpu
    assert all(len(text) > 20 for text in on_cpu)


def test_drawn_text_is_that_of_fd_cpu(texts: list[Any]) -> None:
    """Seeded draws with every stage of the sampler: equal probabilities give equal tokens, and those that
    differ in their last bits give them with this seed."""
    assert texts[1][1] == texts[0][1]


#: Mean log-probability of held-out text for each of the settings.
SCORES = """
import json, sys
from fd_core.engine.build import EMBEDDED
from fd_core.llm import LLM, SamplingParams
text = (EMBEDDED / "heldout.txt").read_text(encoding="utf-8")[:6_000]
for settings in map(json.loads, sys.argv[1:]):
    llm = LLM(platform="xpu", enable_prefix_caching=False, **settings)
    ids = llm.tokenizer.encode(text)
    windows = [[0, *ids[i : i + 512]] for i in range(0, len(ids), 512)]
    answers = llm.generate(windows, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0))
    scores = [p.logprob for a in answers for p in a.prompt_logprobs or [] if p is not None]
    print("RESULT", json.dumps(sum(scores) / len(scores)))
"""
#: By how much perplexity may rise (measured: 0.04 %, -0.02 %, 14 %); it may fall by chance as far.
LOSSES = [
    ({"quantization": "wint8"}, 0.003),
    ({"kv_cache_dtype": "int8"}, 0.003),
    ({"quantization": "wint4"}, 0.2),
]


def test_integers_cost_little_quality() -> None:
    words = [json.dumps({"dtype": "float32", **settings}) for settings, _ in [({}, 0), *LOSSES]]
    command = [sys.executable, "-c", SCORES, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    plain, *others = (float(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT "))
    losses = [math.exp(plain - other) - 1 for other in others]
    assert all(loss != 0 for loss in losses), "something was not quantised"
    for loss, (settings, bound) in zip(losses, LOSSES, strict=True):
        assert abs(loss) < bound, (settings, losses)


def test_served_text_is_that_of_fd_cpu(texts: list[Any], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "fd_core", "serve", "--port", "0", "--log-format", "json"]
    command += ["--dtype", "float32", "--block-size", "16"]
    with log.open("w") as stderr:
        environment = {**ENVIRONMENT, "FD_PLATFORM": "xpu", "FD_LOG": "info"}
        process = subprocess.Popen(command, stderr=stderr, env=environment)
    try:
        base = f"http://127.0.0.1:{wait_until_ready(process, log)}"
        body = {
            "model": "tiny",
            "prompt": PROMPTS,
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = httpx.post(f"{base}/v1/completions", json=body, timeout=120).json()
        assert [choice["text"] for choice in answer["choices"]] == texts[0][0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    lines = log.read_text().splitlines()
    assert any("standing in for xpu" in line for line in lines)
    assert all(line.startswith("{") for line in lines), "Paddle writes into the log"


class TestReports:
    """The stand-in is called one wherever a device is named."""

    def run(self, *words: str, **more: str) -> str:
        command = [sys.executable, "-m", "fd_core", *words]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**ENVIRONMENT, **more}, check=False
        )
        return done.stdout + done.stderr

    def test_doctor(self) -> None:
        text = self.run("doctor", FD_PLATFORM="xpu")
        assert "Paddle's CPU place standing in for xpu, stand_in_cpu" in text
        assert re.search(r"xpu, hardware: no\n +\[POLICY\] device: want hardware", text)
        assert "xpu, rms_norm fused as fused_rms_norm_quant: ok" in text
        assert "fused_rotary_position_embedding: no" in text
        assert "the op is composed" in text

    def test_it_is_no_default(self) -> None:
        report = json.loads(self.run("doctor", "--json").partition("\n}")[0] + "\n}")
        assert report["device"]["platform"] == "cpu"

    def test_why_and_matrix(self) -> None:
        assert "standing in for xpu" in self.run("why", "rms_norm", "--platform", "xpu")
        text = self.run("matrix", "--platform", "xpu", "--op", "rms_norm")
        assert re.search(
            r"rms_norm +xpu stand_in_cpu +float32 fd-xpu, float16 fd-xpu, bfloat16 fd-xpu", text
        )

    def test_simulated_hardware(self) -> None:
        text = self.run("matrix", "--sim", "xpu:p800", "--op", "paged_attention", FD_XPU_PLACE="")
        assert re.search(r"paged_attention +xpu p800 +float32 fd-xpu", text)

    def test_composed_only(self) -> None:
        text = self.run("doctor", FD_PLATFORM="xpu", FD_XPU_FUSED="0")
        assert "[POLICY] swiglu: want FD_XPU_FUSED=1, have FD_XPU_FUSED=0" in text


def documented_plugin() -> str:
    """The thirty lines of docs/xpu.md, on Paddle's CPU place."""
    text = (ROOT / "docs/xpu.md").read_text(encoding="utf-8")
    code = text[text.index('"""fd-npu') : text.index("```\n\nThe tests run this")]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 45
    changed = code.replace('"npu", "npu", "npu", 50', '"npu", "npu", "cpu", 50')
    changed = changed.replace('Path("/dev").glob("davinci[0-9]*")', '[Path("/dev/null")]')
    assert changed.count('"cpu"') == 1
    assert "/dev/null" in changed
    return changed


def test_another_paddle_device_runs_the_engine(texts: list[Any], tmp_path: Path) -> None:
    Fake("npu", documented_plugin()).install(tmp_path)
    environment = {**ENVIRONMENT, "FD_XPU_PLACE": "", "PYTHONPATH": str(tmp_path)}
    settings = {"platform": "npu", "dtype": "float32", "block_size": 16}
    assert generated(settings, env=environment) == [texts[0]]
