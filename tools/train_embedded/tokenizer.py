"""Train the byte-level BPE tokenizer and turn the corpus into token arrays.

python tokenizer.py train --work DIR --out FOLDER   write FOLDER/tokenizer.json
python tokenizer.py pack  --work DIR --out FOLDER   write DIR/tokens/*.npy.xz (uint16)
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = [END_OF_TEXT, START_OF_TURN, END_OF_TURN]
# Words take the space before them; digits stand alone; line ends stay apart from indentation.
PIECES = (
    r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip


def texts(path: Path) -> Iterator[str]:
    with path.open() as lines:
        yield from (json.loads(line)["text"] for line in lines)


def blank_tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer without a vocabulary: no normaliser, so nothing is lost."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def sample(work: Path) -> Iterator[str]:
    """Yield every fourth training document, cut to 20 kB so that no long one rules."""
    yield from (text[:20_000] for text in islice(texts(work / "train.jsonl"), 0, None, 4))


def train(work: Path, out: Path) -> None:
    tokenizer = blank_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(work), trainer)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens")


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """Join documents into one array, an end-of-text token before each."""
    parts = [np.zeros(0, np.uint16)]
    end = tokenizer.token_to_id(END_OF_TEXT)
    for start in range(0, len(documents), 1000):
        for found in tokenizer.encode_batch_fast(documents[start : start + 1000]):
            parts.append(np.array([end, *found.ids], np.uint16))
    return np.concatenate(parts)


def save(path: Path, tokens: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, tokens)
    path.write_bytes(lzma.compress(buffer.getvalue(), preset=4))
    print(f"{path.name}: {tokens.size} tokens, {path.stat().st_size} bytes packed")


def pack(work: Path, out: Path) -> None:
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    (work / "tokens").mkdir(exist_ok=True)
    for name in ("train", "chat", "val", "heldout"):
        documents = list(texts(work / f"{name}.jsonl"))
        random.Random(3).shuffle(documents)
        if name == "heldout":
            documents = ["\n".join(documents)]
            (out / "heldout.txt").write_text(documents[0])
        save(work / "tokens" / f"{name}.npy.xz", encode(tokenizer, documents))
        size = sum(len(text.encode()) for text in documents)
        (work / "tokens" / f"{name}.json").write_text(json.dumps({"bytes": size}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["train", "pack"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    {"train": train, "pack": pack}[options.step](options.work, options.out)


if __name__ == "__main__":
    main()
