"""Write the shipped checkpoint folder from a training run's weights.

    python export.py --work DIR --run FOLDER --out fd_core/assets/tiny

Copies the weights, the tokenizer and the held-out text, writes the configuration files and the
model card, then loads the folder with transformers to check that the logits agree.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from model import Qwen3, Shape
from notices import notices
from safetensors.torch import load_file
from sources import Source, all_sources
from tokenizer import END_OF_TEXT, END_OF_TURN, SPECIALS, START_OF_TURN

END_ID, TURN_END_ID = SPECIALS.index(END_OF_TEXT), SPECIALS.index(END_OF_TURN)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
CARD = """# The embedded model

A {parameters:,}-parameter Qwen3-style causal language model (hidden size {hidden_size},
{num_hidden_layers} layers, {num_attention_heads} query and {num_key_value_heads} key/value heads of
{head_dim}, feed-forward {intermediate_size}, tied embeddings, byte-level BPE vocabulary of
{vocab_size}, context {max_position_embeddings}). It ships with fd-core so that the engine can be
tried and tested offline. It writes English about software; what it says is often wrong, and it is
not meant for any use where that matters.

- Trained from scratch by `tools/train_embedded` on {tokens:,} tokens ({seconds:.0f} s on one H200).
- Held-out bits per byte: **{heldout}** on `heldout.txt` (one stream, windows of 1024 tokens that
  overlap by half); {val} on a wider held-out sample that is not shipped.
- English only. No safety training of any kind.

## Sources

All text comes from documentation in Debian 12 "main" packages. `heldout.txt` holds the prose of
whole documents from some of the packages marked *; none of its paragraphs was used for training.
It is distributed under those packages' licences: `HELDOUT_NOTICE.txt` names its documents and gives
their copyright notices. A few chat examples (greetings, who the model is) were written for this project.

| package | version | licence |
| --- | --- | --- |
{rows}
"""


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def model_config(shape: Shape) -> dict:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "torch_dtype": "bfloat16",
        **shape.config(),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": TURN_END_ID,
        "pad_token_id": END_ID,
    }


def generation_config() -> dict:
    return {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.9,
        "eos_token_id": [TURN_END_ID, END_ID],
        "pad_token_id": END_ID,
    }


def tokenizer_config(shape: Shape) -> dict:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_position_embeddings,
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [START_OF_TURN, END_OF_TURN],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def version(work: Path, source: Source) -> str:
    archive = sorted((work / "deb").glob(f"{source.package}_*.deb"))[-1]
    return archive.name.split("_")[1].replace("%3a", ":")


def card(work: Path, run: Path, shape: Shape, parameters: int) -> str:
    rows = [
        f"| {source.package}{' *' if source.shippable else ''} | {version(work, source)} "
        f"| {source.licence} |"
        for source in sorted(all_sources(), key=lambda source: source.package)
    ]
    facts = json.loads((run / "training.json").read_text())
    return CARD.format(parameters=parameters, rows="\n".join(rows), **facts, **shape.config())


def load_own(shape: Shape, weights: Path) -> Qwen3:
    model = Qwen3(shape)
    state = {name.removeprefix("model."): value for name, value in load_file(weights).items()}
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return model


def largest_difference(own: Qwen3, out: Path) -> float:
    """Compare logits with transformers in float32 on random tokens."""
    from transformers import Qwen3ForCausalLM

    other = Qwen3ForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.randint(3, own.shape.vocab_size, (2, 100))
    with torch.no_grad():
        return (own(ids) - other(ids).logits).abs().max().item()


def export(work: Path, run: Path, out: Path) -> None:
    shape = Shape()
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / "model.safetensors", out / "model.safetensors")
    for name in ("tokenizer.json", "heldout.txt"):
        shutil.copyfile(work / "ckpt" / name, out / name)
    write_json(out / "config.json", model_config(shape))
    write_json(out / "generation_config.json", generation_config())
    write_json(out / "tokenizer_config.json", tokenizer_config(shape))
    (out / "HELDOUT_NOTICE.txt").write_text(notices(work))
    own = load_own(shape, out / "model.safetensors")
    parameters = sum(param.numel() for param in own.parameters())
    (out / "MODEL_CARD.md").write_text(card(work, run, shape, parameters))
    print(f"{parameters} parameters; logits differ by {largest_difference(own, out):.2e} at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    export(options.work, options.run, options.out)


if __name__ == "__main__":
    main()
