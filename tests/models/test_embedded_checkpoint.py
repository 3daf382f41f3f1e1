"""The checkpoint that ships in the package: its size, its format and how well it predicts text."""

import json
import math
from pathlib import Path

import pytest

tokenizers = pytest.importorskip("tokenizers")

FOLDER = Path(__file__).parents[2] / "fd_core" / "assets" / "tiny"
WINDOW = 1024


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def model():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.Qwen3ForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def read_json(name):
    return json.loads((FOLDER / name).read_text())


def test_folder_fits_in_sixteen_megabytes():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 16 * 1000 * 1000


def test_stop_tokens_are_the_ones_the_tokenizer_has(tokenizer):
    names = [tokenizer.id_to_token(token) for token in read_json("generation_config.json")["eos_token_id"]]
    assert names == ["<|im_end|>", "<|endoftext|>"]


SAMPLES = ["plain words", " \t\r\n  x ", "".join(map(chr, range(256))), "日本語 😀 e\u0301"]


@pytest.mark.parametrize("text", SAMPLES)
def test_tokenizer_is_lossless(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_chat_template_is_chatml():
    template = pytest.importorskip("jinja2").Template(read_json("tokenizer_config.json")["chat_template"])
    messages = [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": " Hi"}]
    expected = "<|im_start|>system\nBe brief.\n<|im_end|>\n<|im_start|>user\n Hi<|im_end|>\n"
    assert template.render(messages=messages) == expected
    prompt = template.render(messages=messages, add_generation_prompt=True)
    assert prompt == expected + "<|im_start|>assistant\n"


@pytest.mark.reference
def test_weights_fill_the_model(model):
    assert 5_000_000 <= model.num_parameters() <= 7_000_000
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.slow
@pytest.mark.reference
def test_bits_per_byte_on_held_out_text(model, tokenizer):
    torch = pytest.importorskip("torch")
    text = (FOLDER / "heldout.txt").read_text(encoding="utf-8")
    ids = torch.tensor([tokenizer.token_to_id("<|endoftext|>"), *tokenizer.encode(text).ids])
    nats = 0.0
    for start in range(0, len(ids) - 1, WINDOW):  # disjoint windows: quicker, and an upper bound
        piece = ids[start : start + WINDOW + 1]
        with torch.no_grad():
            logits = model(piece[None, :-1]).logits[0]
        nats += torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum").item()
    assert nats / math.log(2) / len(text.encode()) <= 1.6
