"""Grammars: masks, completion, errors as text, limits, cache; and through the sampler."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fd_core.engine import guided
from fd_core.engine.guided import GuidedCompiler, GuidedError, GuidedState

EOS = 0
MODEL_VOCAB = 512  # larger than the tokenizer's: a model pads its vocabulary


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<eos>"], initial_alphabet=alphabet)
    text = [
        '{"name": "Ada", "age": 36, "tags": ["red", "green"]}',
        "true false null",
        "yes no maybe 2024-10-05",
    ]
    tokenizer.train_from_iterator(text * 40, trainer)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_file))


@pytest.fixture
def compiler(tokenizer_file: Path) -> GuidedCompiler:
    return GuidedCompiler(tokenizer_file, MODEL_VOCAB, [EOS])


def allowed(state: GuidedState) -> list[int]:
    bits = np.unpackbits(state.bitmask().view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).tolist()


def feed(state: GuidedState, tokenizer: Tokenizer, text: str) -> str:
    """Take `text` token by token; each must be allowed."""
    error = ""
    for token in tokenizer.encode(text).ids:
        assert token in allowed(state), f"{tokenizer.decode([token])!r} is not allowed"
        error = error or state.accept(token)
    return error


def random_text(state: GuidedState, tokenizer: Tokenizer, seed: int, limit: int = 400) -> str | None:
    """Uniform choices among allowed tokens until the end; None if it never comes."""
    rng = np.random.default_rng(seed)
    tokens = []
    for _ in range(limit):
        token = int(rng.choice(allowed(state)))
        if token == EOS:
            return tokenizer.decode(tokens)
        tokens.append(token)
        assert state.accept(token) == ""
    return None


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ada", "Bo"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_json_schema(compiler: GuidedCompiler, tokenizer: Tokenizer) -> None:
    for seed in range(20):
        text = random_text(compiler.start("json", json.dumps(SCHEMA)), tokenizer, seed)
        assert text is not None
        value = json.loads(text)
        assert value["name"] in ("Ada", "Bo")
        assert 0 <= value["age"] <= 150


@pytest.mark.parametrize("options", [{}, {"x-guidance": {"whitespace_flexible": True}}])
def test_no_white_space_between_json_tokens(
    compiler: GuidedCompiler, tokenizer: Tokenizer, options: dict[str, Any]
) -> None:
    """Whatever the schema asks for: free white space lets a model never come to an end."""
    for seed in range(10):
        text = random_text(compiler.start("json", json.dumps({**SCHEMA, **options})), tokenizer, seed)
        assert text is not None
        assert text == json.dumps(json.loads(text), separators=(",", ":"))


def test_true_is_any_json(compiler: GuidedCompiler, tokenizer: Tokenizer) -> None:
    assert feed(compiler.start("json", "true"), tokenizer, '[1,{"a":null}]') == ""


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        ("regex", "[0-9]{4}-[0-9]{2}", r"\d{4}-\d{2}"),
        ("choice", '["yes", "no", "say \\"hi\\" \\\\ bye"]', r'yes|no|say "hi" \\ bye'),
        ("grammar", 'root ::= "a" num | "b"\nnum ::= [0-9] [0-9]', r"a\d\d|b"),
        ("grammar", 'start: "x" NUM\nNUM: /[0-9]{3}/', r"x\d{3}"),
    ],
)
def test_other_kinds(
    compiler: GuidedCompiler, tokenizer: Tokenizer, kind: str, text: str, pattern: str
) -> None:
    for seed in range(10):
        found = random_text(compiler.start(kind, text), tokenizer, seed)
        assert found is not None
        assert re.fullmatch(pattern, found)


def test_complete_grammar_allows_the_end_alone(compiler: GuidedCompiler, tokenizer: Tokenizer) -> None:
    state = compiler.start("regex", "[0-9]{2}")
    assert not state.complete
    feed(state, tokenizer, "42")
    assert state.complete
    assert allowed(state) == [EOS]
    assert state.accept(EOS) == ""
    assert allowed(state) == [EOS]
    assert state.accept(EOS) == ""


def test_padding_of_the_vocabulary_is_never_allowed(compiler: GuidedCompiler, tokenizer: Tokenizer) -> None:
    state = compiler.start("regex", "(.|\n)*")
    assert state.bitmask().shape == (MODEL_VOCAB // 32,)
    assert state.bitmask().dtype == np.int32
    assert max(allowed(state)) < tokenizer.get_vocab_size()


def test_wrong_token_becomes_an_error_text(compiler: GuidedCompiler, tokenizer: Tokenizer) -> None:
    state = compiler.start("regex", "[0-9]{2}")
    error = state.accept(tokenizer.encode("x").ids[0])
    assert "grammar" in error
    assert state.error == error
    assert state.accept(EOS) == error
    assert not state.complete


def test_states_of_one_grammar_are_independent(compiler: GuidedCompiler, tokenizer: Tokenizer) -> None:
    first, second = compiler.start("regex", "ab"), compiler.start("regex", "ab")
    before = allowed(second)
    first.accept(tokenizer.encode("a").ids[0])
    assert allowed(second) == before != allowed(first)
    assert allowed(compiler.start("regex", "ab")) == before


REFUSED = [
    ("xml", "a", "want one of json, regex, choice, grammar, have 'xml'"),
    ("json", "{", "json: .*truncated"),
    ("json", "[1]", "want a schema"),
    ("json", "false", "want a schema"),
    ("json", '{"type": "frob"}', "Invalid type: frob"),
    ("json", '{"$ref": "http://localhost/x"}', "not present in a registry"),
    ("json", json.dumps({"enum": list(range(5001))}), "want at most 5000 values in a list, have 5001"),
    ("json", '{"items":' * 70 + "{}" + "}" * 70, "nested at most 64 deep"),
    ("json", "[" * 100_000, "json: "),
    ("regex", "[0-9", "regex: "),
    ("regex", "(?=a)b", "look-around"),
    ("choice", "[]", "1 to 5000 texts"),
    ("choice", '["a", ""]', "none empty"),
    ("choice", "a, b", "JSON list"),
    ("choice", json.dumps([str(i) for i in range(5001)]), "have 5001"),
    ("grammar", "start: missing", 'unknown name: "missing"'),
    ("grammar", "root ::= (", "grammar: "),
    ("regex", "a" * (guided.MAX_TEXT_BYTES + 1), "want at most 1048576 bytes"),
]


@pytest.mark.parametrize(("kind", "text", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refusals_are_texts(compiler: GuidedCompiler, kind: str, text: str, message: str) -> None:
    start = time.perf_counter()
    with pytest.raises(GuidedError, match=message):
        compiler.start(kind, text)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("pattern", ["(a+)+b", "(.*a){30}", "((a|b|c){1,1000}){1,1000}"])
def test_hostile_patterns_stay_cheap(compiler: GuidedCompiler, tokenizer: Tokenizer, pattern: str) -> None:
    start = time.perf_counter()
    state = compiler.start("regex", pattern)
    for token in tokenizer.encode("a" * 60).ids:
        if state.accept(token):
            break
    assert time.perf_counter() - start < 5


def test_cache_keeps_the_last_256(compiler: GuidedCompiler) -> None:
    for i in range(guided.CACHED_GRAMMARS + 10):
        compiler.start("regex", f"x{i}")
        compiler.start("regex", "x0")  # in use: never the oldest
    assert len(compiler._cache) == guided.CACHED_GRAMMARS
    assert ("regex", "x0") in compiler._cache
    assert ("regex", "x1") not in compiler._cache


def test_tokenizer_larger_than_the_model_is_an_error(tokenizer_file: Path) -> None:
    with pytest.raises(GuidedError, match="vocab size too small"):
        GuidedCompiler(tokenizer_file, 100, [EOS]).start("regex", "a")


def test_sampler_obeys_the_grammar(compiler: GuidedCompiler, tokenizer: Tokenizer) -> None:
    """Random logits, hot sampling, beside an unguided row: valid JSON every time."""
    from fd_core.api.tensor import from_numpy
    from fd_core.engine.request import SamplingParams
    from fd_core.engine.sampler import Sampler
    from fd_core.engine.sampling_state import RowState
    from fd_core.host.session import open_session

    session: Any = open_session("reference")
    sampler = Sampler(session.ops, session.platform, session.device, MODEL_VOCAB, 2)
    rng = np.random.default_rng(0)
    for seed in range(5):
        state = compiler.start("json", json.dumps(SCHEMA))
        rows = [RowState(SamplingParams(temperature=2.0), [1], [], seed, (EOS,)) for _ in range(2)]
        while EOS not in rows[0].generated_ids:
            rows[0].bitmask = state.bitmask()
            logits = from_numpy(rng.standard_normal((2, MODEL_VOCAB)).astype(np.float32))
            for row, token in zip(rows, sampler.sample(logits, rows).token_ids, strict=True):
                row.generated_ids.append(token)
            assert state.accept(rows[0].generated_ids[-1]) == ""
        assert json.loads(tokenizer.decode(rows[0].generated_ids[:-1]))["name"] in ("Ada", "Bo")
