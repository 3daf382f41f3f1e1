"""Experts over packed weights on a GPU: against what their codes stand for, against those of dense layers
bit by bit, and in a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fd_cuda")
from fd_cuda import library
from fd_cuda.quant import INTEGERS

from fd_core.api import dtype as dt
from fd_core.api.quant import ExpertMethod, ExpertSpec
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy
from fd_core.engine.build import BuiltEngine, build_engine
from fd_core.engine.config import EngineConfig
from fd_core.engine.request import EngineRequest, SamplingParams
from fd_core.host.session import Session, open_session
from fd_core.loader.write import TensorWriter
from fd_core.ops.catalogue import find
from fd_core.testkit.harness import Harness, build
from tests.cuda.gpu import gpu_session
from tests.cuda.test_cuda_linear import int4_weight, int8_weight, normal
from tests.worker.model_runner import run_together

pytestmark = pytest.mark.device("cuda")
Array = np.ndarray[Any, Any]
HALVES = [dt.bfloat16, dt.float16]
halves = pytest.mark.parametrize("kind", HALVES, ids=str)
#: Rows an expert on average from which on sm_90's tiles serve (expert_packed.h).
MEAN_WIDE = 14
#: Methods and their options.
METHODS = [("wint8", {}), *(("wint4", {"group_size": group}) for group in (64, 128, -1))]
methods = pytest.mark.parametrize(
    ("name", "options"), METHODS, ids=lambda v: "".join(map(str, v.values())) if isinstance(v, dict) else v
)


class Layer:
    """Experts of random weights, packed; `real` [experts]: (gate, up, down), what the codes stand for."""

    def __init__(self, session: Session, name: str, options: dict[str, Any], spec: ExpertSpec) -> None:
        self.session, self.spec = session, spec
        chosen = next(m for m in INTEGERS if m.name == name)
        info = session.platform.open(0)
        self.dense = chosen(info, session.platform, session.ops, options)
        found = self.dense.experts()
        assert found is not None
        self.method: ExpertMethod = found
        self.packed = {n: session.platform.empty(s) for n, s in self.method.packed_weights(spec).items()}
        for e in range(spec.experts):
            self.method.pack(spec, e, self.plain(e), self.packed)
        self.group = options.get("group_size", 0)

    def plain(self, e: int) -> dict[str, Tensor]:
        found = {}
        for i, (name, one) in enumerate(self.spec.matrices.items()):
            weight = normal(7 * e + i, one.out_features, one.in_features) * one.in_features**-0.5
            found[name] = from_numpy(weight.astype(one.dtype.numpy()))
        return found

    def matrices(self, e: int) -> list[tuple[list[Tensor], int, int]]:
        """(codes and scales, columns, depth) of gate, up and down."""
        h, i = self.spec.hidden, self.spec.intermediate
        up = [self.packed[f"gate_up_proj.{n}"].select(e) for n in ("codes", "scales")]
        down = [self.packed[f"down_proj.{n}"].select(e) for n in ("codes", "scales")]
        halves_ = [([stack.select(part) for stack in up], i, h) for part in (0, 1)]
        return [*halves_, (down, h, i)]

    def real(self, e: int) -> list[Array]:
        return [
            int4_weight(self.session, packed, columns, depth, self.group)
            if self.group
            else int8_weight(self.session, packed, columns, depth)
            for packed, columns, depth in self.matrices(e)
        ]

    def run(self, x: Array, counts: list[int]) -> Array:
        put = self.session.platform.from_host
        out, ends = put(np.full_like(x, 7)), put(np.cumsum(counts))
        owners = put(np.zeros(len(x), np.int32))
        self.method.apply(put(x), ends, owners, self.spec, self.packed, out)
        return self.session.platform.to_host(out)

    def rounds(self, x: Array) -> bool:
        """Whether sm_90's tiles serve, which round weights of groups to the rows' type."""
        return self.group > 0 and len(x) // self.spec.experts >= MEAN_WIDE

    def wanted(self, x: Array, counts: list[int]) -> Array:
        """Float64 but for the op's roundings."""
        kind, parts = x.dtype, np.split(x, np.cumsum(counts))
        rest = parts.pop()
        found = []
        for e, rows in enumerate(parts):
            if len(rows) == 0:
                continue
            gate, up, down = self.real(e)
            wide = rows.astype(np.float64)
            g, u = ((wide @ w.T).astype(kind).astype(np.float64) for w in (gate, up))
            inner = (g / (1 + np.exp(-g)) * u).astype(kind).astype(np.float64)
            found.append((inner @ down.T).astype(kind))
        return np.concatenate([*found, np.zeros_like(rest)])


@pytest.fixture(scope="module")
def session() -> Session:
    return gpu_session("moe_expert_int8", "moe_expert_int4", "pack_int8_weight")


def spec_of(experts: int, hidden: int, inner: int, kind: Any) -> ExpertSpec:
    return ExpertSpec(hidden, inner, experts, kind, kind, "layers.0.experts")


def check(got: Array, want: Array, kind: Any, rounded: bool = False) -> None:
    """The tolerance of moe_expert_ffn argues four roundings of a typical value; products of K <= 2048 terms
    near 1 in all add none. Where weights are `rounded`, each of the three products has another one of a
    typical sum. Seven roundings of a third of half an ulp, 2^-8 (2^-11), on average are together below 2^-7
    (2^-10) of a typical result; four times the tolerance holds for the largest of 5e5."""
    rtol, atol = find("moe_expert_ffn").tolerance.of(kind)
    got, want = got.astype(np.float64), want.astype(np.float64)
    times = 4 if rounded else 1
    np.testing.assert_allclose(got, want, times * rtol, times * atol)
    assert np.square(got - want).sum() <= np.square(rtol / 2 * want).sum()


#: By rows an expert: groups of 8 rows, of 16, tiles of 128.
COUNTS = [[1, 0, 7, 3], [9, 27, 0, 8, 20], [40, 17, 0, 33, 3], [300, 1, 129, 0, 66]]


@halves
@methods
@pytest.mark.parametrize("counts", COUNTS, ids=lambda c: ".".join(map(str, c)))
@pytest.mark.parametrize(("hidden", "inner"), [(264, 72), (64, 24), (520, 200)])
def test_what_the_codes_stand_for(
    session: Session, name: str, options: Any, counts: list[int], hidden: int, inner: int, kind: Any
) -> None:
    """And zeros in rows of no expert."""
    layer = Layer(session, name, options, spec_of(len(counts), hidden, inner, kind))
    x = normal(0, sum(counts) + 5, hidden, dtype=kind.numpy())
    got = layer.run(x, counts)
    check(got, layer.wanted(x, counts), kind, layer.rounds(x))
    assert not got[-5:].any()


@methods
def test_a_model_s_size(session: Session, name: str, options: Any) -> None:
    """More groups of rows than blocks, and experts of none."""
    layer = Layer(session, name, options, spec_of(9, 2048, 768, dt.bfloat16))
    counts = [13, 0, 1, 8, 9, 0, 2, 5, 7]
    x = normal(0, sum(counts), 2048, dtype=dt.bfloat16.numpy())
    check(layer.run(x, counts), layer.wanted(x, counts), dt.bfloat16)


def test_more_experts_than_a_block_has_threads(session: Session) -> None:
    layer = Layer(session, "wint4", {"group_size": 64}, spec_of(300, 64, 64, dt.bfloat16))
    counts = [0] * 300
    for e in (0, 5, 255, 256, 257, 299):
        counts[e] = 3
    x = normal(0, sum(counts), 64, dtype=dt.bfloat16.numpy())
    check(layer.run(x, counts), layer.wanted(x, counts), dt.bfloat16)


@halves
@methods
def test_bits_are_those_of_dense_layers(session: Session, name: str, options: Any, kind: Any) -> None:
    """However many rows a group has: sums come in the order of the dense kernels."""
    layer = Layer(session, name, options, spec_of(3, 328, 104, kind))
    platform = session.platform
    dense, swiglu = library.function(layer.dense.kernel), library.function("swiglu")
    for counts in ([3, 0, 9], [6, 20, 13]):
        x = normal(1, sum(counts), 328, dtype=kind.numpy())
        found = []
        for e, rows in enumerate(np.split(x, np.cumsum(counts)[:-1])):
            h = platform.from_host(rows)
            if len(rows) == 0:
                continue
            gate, up, (down, _, _) = layer.matrices(e)
            both = [platform.empty(TensorSpec((len(rows), 104), kind)) for _ in range(3)]
            for (packed, _, _), to in zip((gate, up), both[:2], strict=True):
                dense(h, *packed, None, to)
            swiglu(*both)
            out = platform.empty(TensorSpec(h.shape, kind))
            dense(both[2], *down, None, out)
            found.append(platform.to_host(out))
        got = layer.run(x, counts)
        assert got.tobytes() == np.concatenate(found).tobytes(), counts


@methods
def test_a_row_does_not_depend_on_the_others(session: Session, name: str, options: Any) -> None:
    """Groups of 8 rows and of 16. With more rows sm_90's tiles serve, which round weights of groups."""
    kind = dt.bfloat16
    layer = Layer(session, name, options, spec_of(2, 256, 96, kind))
    x = normal(3, 27, 256, dtype=kind.numpy())
    whole = layer.run(x, [20, 7])
    for rows in (1, 3, 7):
        got = layer.run(np.concatenate([x[:rows], x[20 : 20 + rows]]), [rows, rows])
        assert got[:rows].tobytes() == whole[:rows].tobytes()
        assert got[rows:].tobytes() == whole[20 : 20 + rows].tobytes()


@halves
@methods
def test_many_rows_of_some_experts(session: Session, name: str, options: Any, kind: Any) -> None:
    """More than a band of tiles of 128 rows; columns that end within a tile."""
    layer = Layer(session, name, options, spec_of(5, 328, 264, kind))
    counts = [1300, 70, 0, 64, 129]
    x = normal(0, sum(counts) + 3, 328, dtype=kind.numpy())
    got = layer.run(x, counts)
    check(got, layer.wanted(x, counts), kind, layer.rounds(x))
    assert not got[-3:].any()


def test_nothing_to_do(session: Session) -> None:
    layer = Layer(session, "wint8", {}, spec_of(2, 64, 24, dt.bfloat16))
    assert layer.run(np.zeros((0, 64), dt.bfloat16.numpy()), [0, 0]).shape == (0, 64)
    assert not layer.run(normal(0, 3, 64, dtype=dt.bfloat16.numpy()), [0, 0]).any()


REFUSED = [
    ("x", TensorSpec((4, 64), dt.float32), TypeError, "want bfloat16 or float16, have float32"),
    ("ends", TensorSpec((3,), dt.int64), ValueError, "ends: want size 2 in dimension 0, have"),
    ("gate_up_proj.codes", TensorSpec((2, 2, 1, 1, 512), dt.uint8), ValueError, "want size 2 in dim"),
    ("gate_up_proj.codes", TensorSpec((2, 2, 2, 1, 500), dt.uint8), ValueError, "want 512 or 1024 bytes"),
    ("down_proj.codes", TensorSpec((2, 4, 2, 512), dt.uint8), ValueError, "want size 1 in dimension 2"),
    ("down_proj.scales", TensorSpec((2, 4, 1, 16), dt.float32), TypeError, "want dtype bfloat16"),
    ("out", TensorSpec((4, 32), dt.bfloat16), ValueError, "out: want size 64 in dimension 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("which", "spec", "error", "why"), REFUSED, ids=lambda v: v if isinstance(v, str) else ""
)
def test_what_is_refused(session: Session, which: str, spec: TensorSpec, error: Any, why: str) -> None:
    layer = Layer(session, "wint4", {}, spec_of(2, 64, 24, dt.bfloat16))
    half = TensorSpec((4, 64), dt.bfloat16)
    specs = {
        "x": half,
        "ends": TensorSpec((2,), dt.int64),
        **layer.method.packed_weights(layer.spec),
        "out": half,
    }
    specs[which] = spec
    *given, out = map(session.platform.empty, specs.values())
    with pytest.raises(error, match=f"moe_expert_int4.*{why}"):
        library.function("moe_expert_int4")(*given, 24, out)


# -- in a model ---------------------------------------------------------------------------------------

HIDDEN, INNER, EXPERTS, VOCAB = 128, 72, 6, 96
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16",
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_experts": EXPERTS,
    "num_experts_per_tok": 2, "moe_intermediate_size": INNER, "norm_topk_prob": True,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "rope_theta": 10000.0, "eos_token_id": VOCAB - 1,
}  # fmt: skip


def on_grid(rng: np.random.Generator, columns: int, depth: int, most: int, group: int) -> Array:
    """Weights that codes of at most `most` hold exactly under scales that are powers of two."""
    length = group if group > 0 else depth
    codes = rng.integers(-most, most + 1, (columns, -(-depth // length), length))
    codes[:, :, 0] = most
    steps = 2.0 ** rng.integers(-1, 1, codes.shape[:2]) * 2.0 ** round(np.log2(2 / most / depth**0.5))
    return (codes * steps[..., None]).reshape(columns, -1)[:, :depth]


def tensors(most: int, group: int) -> dict[str, Array]:
    rng = np.random.default_rng(11)

    def plain(*shape: int) -> Array:
        return rng.standard_normal(shape) / shape[-1] ** 0.5

    found = {"model.embed_tokens.weight": plain(VOCAB, HIDDEN) * 8, "model.norm.weight": np.ones(HIDDEN)}
    for i in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{i}"
        found |= {f"{at}.self_attn.{n}_proj.weight": plain(128 if n == "q" else 64, HIDDEN) for n in "qkv"}
        found |= {f"{at}.self_attn.o_proj.weight": plain(HIDDEN, 128)}
        found |= {f"{at}.self_attn.{n}_norm.weight": np.ones(32) for n in "qk"}
        found |= {f"{at}.{n}_layernorm.weight": np.ones(HIDDEN) for n in ("input", "post_attention")}
        found[f"{at}.mlp.gate.weight"] = 4 * plain(EXPERTS, HIDDEN)
        for e in range(EXPERTS):
            expert = f"{at}.mlp.experts.{e}"
            found |= {
                f"{expert}.{n}_proj.weight": on_grid(rng, INNER, HIDDEN, most, group)
                for n in ("gate", "up")
            }
            found[f"{expert}.down_proj.weight"] = on_grid(rng, HIDDEN, INNER, most, group)
    return found


@pytest.fixture(scope="module", params=METHODS, ids=str)
def models(request: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint whose experts the method holds exactly, with the method and as it is."""
    name, options = request.param
    made = tensors(127 if name == "wint8" else 7, options.get("group_size", 0))
    values = {key: value.astype(dt.bfloat16.numpy()) for key, value in made.items()}
    folders = {}
    quantised = {"quantization": "none", "moe_quant_type": name, **options}
    for which, more in (("packed", {"quantization_config": quantised}), ("plain", {})):
        folder = folders[which] = tmp_path_factory.mktemp(which)
        (folder / "config.json").write_text(json.dumps({**CONFIG, **more}))
        specs = {key: TensorSpec(value.shape, dt.bfloat16) for key, value in values.items()}
        writer = TensorWriter(folder / "model.safetensors", specs)
        for key, value in values.items():
            writer.write(key, value)
        writer.close()
    return folders


PROMPT = [int(t) for t in np.random.default_rng(7).integers(0, VOCAB, 41)]


def test_logits_are_those_of_the_oracles_on_plain_weights(
    session: Session, models: dict[str, Path]
) -> None:
    """Weights are the same, so that activations of float16 are all that differs: ten roundings of 2^-12
    at most in each of two layers, which add up as squares do, seen through sums that spread them."""
    got = Harness(build(models["packed"], session, weights="float16")).logits("p", PROMPT)
    oracle = build(models["plain"], open_session("reference"), weights="float32")
    want = Harness(oracle).logits("p", PROMPT)
    error = np.sqrt(np.square(got.astype(np.float64) - want).mean()) / want.std()
    assert 0 < error < 5e-3, error


def engine(folder: Path, **options: Any) -> BuiltEngine:
    given = {"block_size": 8, "max_num_seqs": 8, "max_num_batched_tokens": 64, "seed": 1, **options}
    return build_engine(EngineConfig(model=str(folder), platform="cuda", **given))


def test_text_in_company_and_in_graphs(session: Session, models: dict[str, Path]) -> None:
    """The same tokens and log-probabilities alone, together, and from captured graphs; prompts are short
    enough for less than MEAN_WIDE rows an expert."""
    greedy = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=2)
    prompts = [[(7 * i + 11 * j) % 90 for j in range(n)] for i, n in enumerate((1, 5, 9, 12))]
    requests = [
        EngineRequest(request_id=str(i), prompt_token_ids=ids, params=greedy)
        for i, ids in enumerate(prompts)
    ]
    together = run_together(engine(models["packed"], enable_graphs=True), requests)
    assert run_together(engine(models["packed"], enable_graphs=False), requests) == together
    alone = {}
    for request in requests:
        alone |= run_together(engine(models["packed"], enable_graphs=True), [request])
    assert alone == together
