"""Method "wfp8afp8": core's, over the oracles and over fd-cpu's kernels, and the checkpoints it reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_core.api import dtype as dt
from fd_core.api.dtype import DType
from fd_core.api.quant import LinearSpec
from fd_core.api.tensor import TensorSpec, from_numpy
from fd_core.api.verdict import ReasonCode
from fd_core.engine.build import build_model
from fd_core.engine.config import EngineConfig
from fd_core.host.errors import FdError, UnsupportedOpError
from fd_core.host.session import Session, open_session
from fd_core.layers.context import ModelContext
from fd_core.layers.linear import Linear
from fd_core.loader.folder import FolderSource
from fd_core.loader.load import load_weights
from fd_core.quantization.config import QuantError, parse_quantization
from fd_core.quantization.fp8 import Float8Linear
from fd_core.quantization.registry import QuantChooser

Array = np.ndarray[Any, Any]
E4M3 = dt.float8_e4m3fn.numpy()
#: (K, N)
SHAPES = [(16, 16), (64, 48), (208, 112), (1024, 32)]
halves = pytest.mark.parametrize("kind", [dt.bfloat16, dt.float16], ids=str)


@pytest.fixture(scope="module", params=["reference", "cpu"])
def session(request: pytest.FixtureRequest) -> Session:
    try:
        return open_session(request.param)
    except FdError as error:
        pytest.skip(str(error))


def spec(depth: int, columns: int, kind: DType = dt.bfloat16, weight: DType = dt.bfloat16) -> LinearSpec:
    return LinearSpec(depth, columns, True, weight, kind, prefix="layers.0.mlp")


def normal(seed: int, *shape: int, kind: DType = dt.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(kind.numpy())


def rounded(rows: Array) -> Array:
    """Rows as e4m3 codes under a scale of their largest magnitude / 448, brought back; float64."""
    wide = rows.astype(np.float32)
    scale = np.abs(wide).max(1, keepdims=True, initial=0) / np.float32(448)
    codes = (wide / np.where(scale > 0, scale, np.float32(1))).astype(ml_dtypes.float8_e4m3fn)
    return codes.astype(np.float64) * scale.astype(np.float64)


@dataclass
class Layer:
    """A method of a session with one packed weight."""

    session: Session
    method: Float8Linear
    columns: int
    packed: Any

    def __call__(self, x: Array, bias: Array | None = None) -> Array:
        put = self.session.platform.from_host
        out = put(np.full((len(x), self.columns), 7, x.dtype))
        self.method.apply(put(x), self.packed, None if bias is None else put(bias), out)
        return self.session.platform.to_host(out)

    def weight(self) -> Array:
        codes, scales = (self.session.platform.to_host(t) for t in self.packed)
        assert codes.dtype == E4M3
        return codes.astype(np.float64) * scales.astype(np.float64)[:, None]


def method(session: Session, **config: Any) -> Float8Linear:
    return Float8Linear(session.device, session.platform, session.ops, config)


def layer(session: Session, weight: Array, kind: DType = dt.bfloat16) -> Layer:
    one, (columns, depth) = method(session), weight.shape
    source = weight.copy()
    wanted = spec(depth, columns, kind, dt.dtype(weight.dtype.name))
    assert one.create_weights(wanted) == {"weight": TensorSpec((columns, depth), wanted.dtype)}
    packed = one.process_weights(wanted, {"weight": from_numpy(source)})
    source[...] = 1  # packed once: the source may be gone
    return Layer(session, one, columns, packed)


@halves
@pytest.mark.parametrize(("depth", "columns"), SHAPES)
def test_products_are_those_of_the_rounded_sides(
    session: Session, kind: DType, depth: int, columns: int
) -> None:
    """One float32 chain of K products near 1 in all, and one rounding to the output's type."""
    weight = (normal(0, columns, depth) / np.float32(depth**0.5)).astype(dt.bfloat16.numpy())
    bias, one = normal(1, columns, kind=kind), layer(session, weight, kind)
    np.testing.assert_array_equal(one.weight(), rounded(weight))
    ulp = 2.0**-8 if kind == dt.bfloat16 else 2.0**-11
    for rows in (0, 1, 3, 17, 5):
        x = normal(2, rows, depth, kind=kind)
        want = rounded(x) @ rounded(weight).T
        for shift in (None, bias):
            exact = want if shift is None else want + shift.astype(np.float64)
            np.testing.assert_allclose(one(x, shift), exact, rtol=1.01 * ulp, atol=2e-5)


@given(seed=st.integers(0, 2**32 - 1), scale=st.integers(-20, 12), rows=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_near_the_product_of_plain_weights(seed: int, scale: int, rows: int) -> None:
    """Either side is rounded by at most 2^-4 of a value, or 2^-10 of 448 where codes are subnormal."""
    session = open_session("reference")
    weight = normal(seed, 16, 64) * np.exp2(np.float32(scale))
    x = normal(seed + 1, rows, 64, kind=dt.bfloat16)
    away = [
        np.maximum(np.abs(a) * 2.0**-4, np.abs(a).max(1, keepdims=True) / 448 * 2.0**-10)
        for a in (x.astype(np.float64), weight.astype(np.float64))
    ]
    a, b = np.abs(x.astype(np.float64)), np.abs(weight.astype(np.float64))
    limit = away[0] @ b.T + a @ away[1].T + away[0] @ away[1].T
    want = x.astype(np.float64) @ weight.astype(np.float64).T
    got = layer(session, weight)(x).astype(np.float64)
    assert (np.abs(got - want) <= limit + 2.0**-8 * (np.abs(want) + limit)).all()


def test_small_and_zero_outputs_keep_what_they_are(session: Session) -> None:
    """Scales have no floor: a row of 1e-7 is rounded as finely as one of 1."""
    weight = normal(3, 32, 64)
    weight[1] *= np.float32(1e-7)
    weight[2] = 0
    one, x = layer(session, weight), normal(4, 4, 64, kind=dt.float16)
    np.testing.assert_array_equal(one.weight(), rounded(weight))
    bias = normal(5, 32, kind=dt.float16)
    np.testing.assert_array_equal(one(x, bias)[:, 2], np.full(4, bias[2]))


def test_a_row_is_the_same_in_any_batch(session: Session) -> None:
    one, x = layer(session, normal(6, 48, 208)), normal(7, 40, 208, kind=dt.bfloat16)
    whole = one(x)
    for rows in (1, 2, 7, 13):
        np.testing.assert_array_equal(one(x[:rows]), whole[:rows])
        np.testing.assert_array_equal(one(x[-rows:]), whole[-rows:])


# -- checkpoints -------------------------------------------------------------------------------------


def stored_sides(weight: Array) -> tuple[Array, Array]:
    """(codes, scales [out, 1]) with bfloat16 scales, as llm-compressor writes them."""
    scales = (np.abs(weight).max(1, keepdims=True) / 448).astype(ml_dtypes.bfloat16)
    codes = np.clip(weight / scales.astype(np.float32), -448, 448).astype(E4M3)
    return codes, scales


def context(session: Session, chosen: Float8Linear) -> ModelContext:
    device = replace(session.device, activation_dtype=None)
    sizes = {"block_size": 8, "max_num_tokens": 8, "max_num_seqs": 4, "max_model_len": 8}
    types = {"dtype": dt.bfloat16, "cache_dtype": dt.bfloat16}
    parts = {"platform": session.platform, "device": device, "ops": session.ops}
    return ModelContext(**parts, **types, **sizes, quant=lambda spec: chosen)  # type: ignore[arg-type]


def save(folder: Path, tensors: dict[str, Array]) -> FolderSource:
    from fd_core.loader.write import TensorWriter

    specs = {name: TensorSpec(a.shape, dt.dtype(a.dtype.name)) for name, a in tensors.items()}
    writer = TensorWriter(folder / "model.safetensors", specs)
    for name, array in tensors.items():
        writer.write(name, array)
    writer.close()
    return FolderSource(folder)


def test_checkpoints_of_codes_and_scales_are_read(session: Session, tmp_path: Path) -> None:
    """Two matrices that run as one, each with its own scales."""
    weights = {"q_proj": normal(8, 32, 64), "k_proj": normal(9, 16, 64)}
    tensors, real = {}, []
    for name, weight in weights.items():
        codes, scales = stored_sides(weight)
        tensors |= {f"{name}.weight": codes, f"{name}.weight_scale": scales}
        real.append(codes.astype(np.float64) * scales.astype(np.float64))
    chosen = method(session, is_quantized=True)
    merged = Linear(context(session, chosen), 64, [(n, len(w)) for n, w in weights.items()])
    load_weights([merged], save(tmp_path, tensors), progress=False)
    x = normal(10, 5, 64, kind=dt.bfloat16)
    out = session.platform.empty(TensorSpec((5, 48), dt.bfloat16))
    merged(session.platform.from_host(x), out)
    want = rounded(x) @ np.concatenate(real).T
    np.testing.assert_allclose(session.platform.to_host(out), want, rtol=2.0**-8 * 1.01, atol=2e-4)


def test_what_was_stored_is_adopted(session: Session, tmp_path: Path) -> None:
    one, wanted = layer(session, normal(11, 32, 64)), spec(64, 32)
    stored = one.method.store(wanted, one.packed)
    assert {n: t.spec for n, t in stored.items()} == one.method.stored_weights(wanted)
    again = method(session, is_quantized=True, forms={"wfp8afp8": "e4m3-rows-1"})
    assert again.stored
    source = save(tmp_path, {f"layers.0.mlp.{n}": t.numpy() for n, t in stored.items()})
    loaded = Linear(context(session, again), 64, [("layers.0.mlp", 32)])
    load_weights([loaded], source, progress=False)
    for have, want in zip(loaded._packed, one.packed, strict=True):
        np.testing.assert_array_equal(session.platform.to_host(have), session.platform.to_host(want))


def test_other_forms_are_refused() -> None:
    with pytest.raises(
        QuantError, match=r"want weights stored as 'e4m3-rows-1' \(forms\), have 'panels-9'"
    ):
        method(open_session("reference"), is_quantized=True, forms={"wfp8afp8": "panels-9"})


def scheme(**changes: Any) -> dict[str, Any]:
    """config.json of an "FP8-dynamic" checkpoint; `a__b=c` changes what lies under a, b."""
    side = {"num_bits": 8, "type": "float", "symmetric": True}
    group: dict[str, Any] = {
        "targets": ["Linear"],
        "weights": {**side, "strategy": "channel", "dynamic": False},
        "input_activations": {**side, "strategy": "token", "dynamic": True},
        "output_activations": None,
    }
    for path, value in changes.items():
        *folders, last = path.split("__")
        place = group
        for name in folders:
            place = place[name]
        place[last] = value
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*mlp.gate$"],
        "kv_cache_scheme": None,
    }


KNOWN = ("none", "wfp8afp8")


def test_compressed_tensors_are_recognised() -> None:
    parsed = parse_quantization(scheme(), "", KNOWN)
    assert (parsed.name, parsed.from_checkpoint) == ("wfp8afp8", True)
    assert parsed.options["is_quantized"] is True
    assert parsed.name_for("lm_head") == "none"
    assert parsed.name_for("model.layers.3.mlp.gate") == "none"
    assert parsed.name_for("model.layers.3.mlp.gate_proj") == "wfp8afp8"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (scheme(weights__num_bits=4), "group_0.weights.num_bits: want 8, have 4"),
        (scheme(weights__type="int"), "group_0.input_activations.type: want 'int', have 'float'"),
        (scheme(weights__strategy="tensor"), "group_0.weights.strategy: want 'channel', have 'tensor'"),
        (scheme(input_activations__dynamic=False), "input_activations.dynamic: want True, have False"),
        (scheme(input_activations=None), "group_0.input_activations: want .*, have None"),
        (scheme(output_activations={}), "group_0.output_activations: want none, have {}"),
        (scheme(targets=["Linear", "Embedding"]), r'group_0: want a group with targets \["Linear"\]'),
        ({**scheme(), "config_groups": {}}, "want one group under config_groups, have {}"),
        ({**scheme(), "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme: want none, have"),
    ],
)
def test_other_schemes_are_refused_with_what_differs(raw: dict[str, Any], why: str) -> None:
    with pytest.raises(QuantError, match=f"compressed-tensors: .*{why}.*; fix: take a checkpoint of"):
        parse_quantization(raw, "", KNOWN)


# -- refusals ----------------------------------------------------------------------------------------


def test_every_reason_is_told() -> None:
    session = open_session("reference")
    assert Float8Linear.supports(spec(64, 32), session.device).ok
    verdict = Float8Linear.supports(spec(65, 33, dt.float32, dt.int8), session.device)
    codes = [r.code for r in verdict.reasons]
    assert codes == [ReasonCode.DTYPE, ReasonCode.DTYPE, ReasonCode.SHAPE, ReasonCode.SHAPE]
    assert "layers.0.mlp: outputs: want a multiple of 16, have 33" in str(verdict)


@pytest.mark.parametrize("platform", ["reference", "cpu"])
def test_devices_that_compute_in_float32_refuse_before_anything_is_loaded(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        opened = open_session(platform)
    except FdError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("fd_core.engine.build.open_source", lambda *_: pytest.fail("weights were opened"))
    with pytest.raises(
        UnsupportedOpError, match=r"activations: want bfloat16 \| float16, have float32"
    ) as no:
        build_model(EngineConfig(quantization="wfp8afp8"), opened)
    assert "w8a8" in str(no.value)


def answers(session: Session, folder: Path | str, quantization: str) -> Array:
    """What the first projection of a model makes of a row."""
    built = build_model(EngineConfig(model=str(folder), quantization=quantization), session)
    linear = next(one for one in built.layers_with_weights() if isinstance(one, Linear))
    x = normal(12, 3, linear.spec.in_features, kind=dt.bfloat16)
    out = session.platform.empty(TensorSpec((3, linear.out_features), dt.bfloat16))
    linear(session.platform.from_host(x), out)
    assert linear.method.name == "wfp8afp8"
    return session.platform.to_host(out)


def test_a_model_is_converted_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the oracles with activations of the weights' type, as on a device that computes in 16 bits."""
    session = open_session("reference")
    halved = replace(session, device=replace(session.device, activation_dtype=None))
    convert(halved, tmp_path / "out", monkeypatch)
    now, then = answers(halved, tmp_path / "out", ""), answers(halved, "", "wfp8afp8")
    np.testing.assert_array_equal(now, then)


def test_a_checkpoint_of_another_tool_is_a_model(tmp_path: Path) -> None:
    """The embedded model as llm-compressor would write it: every projection of every block in float8."""
    from fd_core.engine.build import EMBEDDED
    from fd_core.loader.tensor_file import TensorFile

    plain, tensors = TensorFile(Path(EMBEDDED) / "model.safetensors"), {}
    for name in plain.entries:
        tensors[name] = np.array(plain.read(name))
        if name.endswith("_proj.weight"):
            codes, scales = stored_sides(tensors[name].astype(np.float32))
            tensors |= {name: codes, f"{name}_scale": scales}
    config = json.loads((Path(EMBEDDED) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": scheme()}))
    save(tmp_path, tensors)
    session = open_session("reference")
    halved = replace(session, device=replace(session.device, activation_dtype=None))
    got = answers(halved, tmp_path, "").astype(np.float64)
    parts = [f"model.layers.0.self_attn.{n}_proj.weight" for n in "qkv"]
    weight = np.concatenate(
        [tensors[n].astype(np.float64) * tensors[f"{n}_scale"].astype(np.float64) for n in parts]
    )
    x = rounded(normal(12, 3, weight.shape[1], kind=dt.bfloat16))
    np.testing.assert_allclose(got, x @ weight.T, rtol=1.01 * 2.0**-8, atol=1e-3)


def convert(session: Session, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fd_core.engine.build import EMBEDDED
    from fd_core.quantization import convert as conversion

    monkeypatch.setattr(conversion, "open_session", lambda *_: session)
    quant = parse_quantization(None, "wfp8afp8", session.quant_methods)
    conversion.convert(conversion.Job(Path(EMBEDDED), out, quant))


def test_the_chooser_finds_it_on_every_device() -> None:
    session = open_session("reference")
    chosen: Callable[[LinearSpec], Any] = QuantChooser(
        parse_quantization(None, "wfp8afp8", session.quant_methods),
        session.quant_methods,
        replace(session.device, activation_dtype=None),
        session.platform,
        session.ops,
    )
    assert type(chosen(spec(64, 32))) is Float8Linear
