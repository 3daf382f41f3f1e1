"""Engines as processes: which ones a benchmark runs, and how it talks to them (see `workers`)."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
#: Options PYTHON:FOLDER of peers that convert models, and their workers.
CONVERTING = {"ctranslate2": "ct2", "openvino": "openvino_genai", "onnxruntime": "ort_genai"}


@dataclass(frozen=True)
class Launch:
    """How a worker is started."""

    python: str
    worker: str
    model: str
    env: dict[str, str] = field(default_factory=dict)


class Peer:
    """A worker process. It is stopped while it has no job, so that threads which wait by spinning take
    nothing from the one that is measured."""

    def __init__(self, launch: Launch) -> None:
        command = [launch.python, "-m", f"workers.{launch.worker}", launch.model]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=HERE, env={**os.environ, **launch.env}, **pipes)
        self.about = self._answer()
        self.name = f"{self.about['peer']} {self.about['precision']}"
        self.process.send_signal(signal.SIGSTOP)

    def run(self, job: dict[str, Any]) -> float:
        """Seconds that the job took, by the worker's clock."""
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        seconds = float(self._answer()["seconds"])
        self.process.send_signal(signal.SIGSTOP)
        return seconds

    def megabytes(self, field: str) -> float:
        """Of /proc's status: VmRSS now, VmHWM at most so far; mapped files count where they are read."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"/proc/{self.process.pid}/status has no {field}")
        return int(found[1]) / 1024

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"worker {self.process.args} ended with status {self.process.wait()}")
        return dict(json.loads(line))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait(20)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="auto", help="ours: auto (bfloat16), float16 or float32")
    parser.add_argument("--peer-python", default="", help="with llama-cpp-python")
    parser.add_argument(
        "--gguf", type=Path, help="llama.cpp's file (default: model-f16.gguf in the folder)"
    )
    for name in CONVERTING:
        text = "and its converted model"
        parser.add_argument(f"--{name}", action="append", default=[], metavar="PYTHON:FOLDER", help=text)
    parser.add_argument("--torch", nargs="*", default=[], help="precisions to run transformers in")


def launches(args: argparse.Namespace) -> list[Launch]:
    """Ours first."""
    folder = args.model.resolve()
    found = [Launch(sys.executable, "fd", str(folder), {"BENCH_DTYPE": args.dtype})]
    if args.peer_python:
        gguf = args.gguf or folder / "model-f16.gguf"
        found.append(Launch(args.peer_python, "llamacpp", str(gguf)))
    for name, worker in CONVERTING.items():
        for option in getattr(args, name):
            python, _, model = option.partition(":")
            found.append(Launch(python, worker, model))
    for precision in args.torch:
        env = {"BENCH_DTYPE": precision}
        found.append(Launch(sys.executable, "transformers_torch", str(folder), env))
    return found
