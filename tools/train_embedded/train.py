"""Train the embedded model on the packed tokens and save it in bfloat16.

    python train.py --tokens DIR/tokens --out FOLDER --minutes 8

Runs on one GPU, or slowly on a CPU. Learning rates follow the clock, not the step count, so the
run ends well whatever the speed: warm-up, a plateau, then a linear fall to zero.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from model import Qwen3, Shape, bits_per_byte
from optim import Muon, split_parameters
from safetensors.torch import save_file
from torch import Tensor

END_OF_TEXT = 0
DOCUMENT_START_SHARE = 0.3  # of the text windows; the others start anywhere
WARMUP_STEPS = 200
PLATEAU = 0.45  # share of the run before the learning rates fall


def load(folder: Path, name: str, device: torch.device) -> Tensor:
    data = lzma.decompress((folder / f"{name}.npy.xz").read_bytes())
    tokens = np.load(io.BytesIO(data))
    return torch.from_numpy(tokens.astype(np.int32)).to(device)


@dataclass
class Stream:
    """A token array from which random windows are cut."""

    tokens: Tensor
    starts: Tensor  # positions of the end-of-text token before each document

    @classmethod
    def open(cls, folder: Path, name: str, device: torch.device) -> Stream:
        tokens = load(folder, name, device)
        return cls(tokens, (tokens == END_OF_TEXT).nonzero().flatten())

    def windows(self, rows: int, length: int, aligned: int) -> Tensor:
        """Cut windows; the first `aligned` of them start at, or just after, an end of text."""
        device, last = self.tokens.device, self.tokens.numel() - length
        start = torch.randint(last, (rows,), device=device)
        pick = torch.randint(self.starts.numel(), (aligned,), device=device)
        skip = torch.randint(2, (aligned,), device=device)
        start[:aligned] = (self.starts[pick] + skip).clamp(max=last - 1)
        return self.tokens[start[:, None] + torch.arange(length, device=device)].long()


@dataclass
class Data:
    """Training text and chats, mixed at a fixed share per batch."""

    text: Stream
    chat: Stream
    rows: int
    length: int
    chat_share: float

    def batch(self) -> Tensor:
        chats = round(self.rows * self.chat_share)
        texts = self.rows - chats
        text = self.text.windows(texts, self.length, round(texts * DOCUMENT_START_SHARE))
        return torch.cat([text, self.chat.windows(chats, self.length, chats)])


def rate(step: int, progress: float) -> float:
    """Return the learning rate as a share of its peak; `progress` runs from 0 to 1."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * min(1.0, max(0.0, (1.0 - progress) / (1.0 - PLATEAU)))


class Trainer:
    """Holds the model, its optimisers and the clock."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        self.model = Qwen3(Shape(num_hidden_layers=options.layers)).to(device)
        matrices, others = split_parameters(self.model)
        fused = device.type == "cuda"
        adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)
        self.peaks = [(Muon(matrices, decay=options.decay), options.muon_lr), (adam, options.adam_lr)]
        compiled = torch.compile(self.model.loss, dynamic=False) if fused else self.model.loss
        self.loss = compiled
        self.begun = time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self.begun

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16)

    def step(self, number: int, ids: Tensor) -> Tensor:
        share = rate(number, self.elapsed() / (60 * self.options.minutes))
        with self.autocast():
            loss = self.loss(ids)
        loss.backward()
        for optimizer, peak in self.peaks:
            optimizer.param_groups[0]["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    def save(self, tokens: int, report: dict) -> None:
        out = self.options.out
        out.mkdir(parents=True, exist_ok=True)
        save_file(self.model.tensors(), out / "model.safetensors", metadata={"format": "pt"})
        facts = {"tokens": tokens, "seconds": round(self.elapsed(), 1), **report}
        (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")

    def score(self) -> dict[str, float]:
        """Return bits per byte of the held-out text and of the validation documents."""
        found = {}
        for name in ("heldout", "val"):
            ids = load(self.options.tokens, name, self.device).long()
            n_bytes = json.loads((self.options.tokens / f"{name}.json").read_text())["bytes"]
            with self.autocast():
                found[name] = round(bits_per_byte(self.model, ids, n_bytes), 4)
        return found

    def losses(self, data: Data) -> Iterator[tuple[int, Tensor]]:
        number = 0
        while self.elapsed() < 60 * self.options.minutes:
            yield number, self.step(number, data.batch())
            number += 1
            if number == 3:
                self.settle()

    def settle(self) -> None:
        """Restart the clock once compilation is over, keeping it inside the time given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.options.minutes -= self.elapsed() / 60
        print(f"compiled after {self.elapsed():.1f} s", flush=True)
        self.begun = time.monotonic()


def train(trainer: Trainer, data: Data) -> None:
    """Run to the time limit; report every 250 steps and save every 1500."""
    tokens, saved = 0, 0
    for number, loss in trainer.losses(data):
        tokens += data.rows * (data.length - 1)
        if number % 250 == 0:
            seconds = trainer.elapsed()
            print(f"{number} {seconds:.0f}s {tokens / 1e6:.0f}M loss {loss.item():.4f}", flush=True)
        if number - saved >= 1500:
            saved = number
            trainer.save(tokens, report := trainer.score())
            print(f"saved {report}", flush=True)
    report = trainer.score()
    trainer.save(tokens, {"steps": number + 1, **report})
    print(f"done: {number + 1} steps, {tokens} tokens, bits per byte {report}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--rows", type=int, default=64, help="windows per step")
    parser.add_argument("--length", type=int, default=2048, help="tokens per window")
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--chat-share", type=float, default=0.15)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--decay", type=float, default=0.05)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.manual_seed(5)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    text, chat = (Stream.open(options.tokens, name, device) for name in ("train", "chat"))
    data = Data(text, chat, options.rows, options.length + 1, options.chat_share)
    trainer = Trainer(options, device)
    print(f"{sum(p.numel() for p in trainer.model.parameters())} parameters on {device}", flush=True)
    train(trainer, data)


if __name__ == "__main__":
    main()
