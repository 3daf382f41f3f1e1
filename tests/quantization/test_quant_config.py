"""Which quantisation a model gets, and which layers are spared."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from fd_core.api import dtype as dt
from fd_core.api.device import DeviceInfo
from fd_core.api.quant import ExpertSpec, LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.host.errors import UnsupportedOpError
from fd_core.host.reference import ReferencePlatform
from fd_core.quantization.config import QuantConfig, QuantError, parse_quantization
from fd_core.quantization.registry import QuantChooser
from fd_core.quantization.unquantized import PlainExperts, Unquantized

KNOWN = ("none", "wint8", "block_wise_fp8")
PLATFORM = ReferencePlatform()
DEVICE = PLATFORM.open(0)


class Wint8(QuantMethod):
    """Small layers only, so that a refusal can be seen."""

    name: ClassVar[str] = "wint8"

    @classmethod
    def supports(cls, spec: LinearSpec, device: DeviceInfo) -> Verdict:
        if spec.in_features <= 64:
            return YES
        return Verdict.no(ReasonCode.SHAPE, "wint8.in_features", "<= 64", spec.in_features)

    def create_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        return {}

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        return None

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        return None


def spec(prefix: str, size: int = 64) -> LinearSpec:
    return LinearSpec(size, size, False, dt.bfloat16, dt.float32, prefix)


def chooser(config: QuantConfig) -> QuantChooser:
    return QuantChooser(config, {"none": Unquantized, "wint8": Wint8}, DEVICE, PLATFORM, None)


def test_nothing_asked_is_none() -> None:
    assert parse_quantization(None, "", KNOWN) == QuantConfig("none")
    assert parse_quantization({}, "none", KNOWN).name == "none"


def test_the_users_text_is_a_name_or_json() -> None:
    assert parse_quantization(None, " wint8 ", KNOWN).name == "wint8"
    parsed = parse_quantization(None, '{"quantization": "wint8", "skip": ["lm_head"], "bits": 8}', KNOWN)
    assert parsed.name == "wint8"
    assert parsed.skip == ("lm_head",)
    assert parsed.options["bits"] == 8
    assert not parsed.from_checkpoint


@pytest.mark.parametrize("key", ["quantization", "quant_method"])
def test_the_checkpoint_says_it_under_either_key(key: str) -> None:
    parsed = parse_quantization({key: "wint8", "modules_to_not_convert": ["lm_head"]}, "", KNOWN)
    assert (parsed.name, parsed.skip, parsed.from_checkpoint) == ("wint8", ("lm_head",), True)


def test_block_scaled_fp8_has_its_own_name() -> None:
    raw = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    assert parse_quantization(raw, "", KNOWN).name == "block_wise_fp8"


def test_the_checkpoint_wins_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert parse_quantization({"quantization": "wint8"}, "none", KNOWN).name == "wint8"
    assert "'none' is ignored: the checkpoint is 'wint8'" in caplog.text
    caplog.clear()
    assert parse_quantization({"quantization": "wint8"}, "wint8", KNOWN).name == "wint8"
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("checkpoint", "text", "why"),
    [
        (None, "wint9", "want one of block_wise_fp8, none, wint8; have 'wint9'"),
        ({"quant_method": "eetq"}, "", "have 'eetq'"),
        ({"bits": 4}, "", "quantization_config: want a method under quantization or quant_method"),
        ({"quantization": 3}, "", "want a method under"),
        (None, "{", "want a name or a JSON object"),
        (None, '{"bits": 4}', "want a method under"),
        (None, '{"quantization": "wint8", "lm_head": "w9"}', "have 'w9'"),
        (None, '{"quantization": "wint8", "lm_head": 8}', "name of a method under lm_head; have 8"),
    ],
)
def test_an_unknown_method_lists_the_known_ones(checkpoint: Any, text: str, why: str) -> None:
    with pytest.raises(QuantError, match=why):
        parse_quantization(checkpoint, text, KNOWN)


@pytest.mark.parametrize(
    ("pattern", "spared"),
    [
        ("lm_head", {"lm_head"}),
        ("model.layers.1", {"model.layers.1.mlp.gate_proj"}),
        ("gate_proj", {"model.layers.0.mlp.gate_proj", "model.layers.1.mlp.gate_proj"}),
        ("model.layers.0.*", {"model.layers.0.mlp.gate_proj", "model.layers.0.self_attn.q_proj"}),
        ("model.layer", set()),
    ],
)
def test_layers_can_be_spared(pattern: str, spared: set[str]) -> None:
    names = ["lm_head", "model.layers.0.mlp.gate_proj", "model.layers.0.self_attn.q_proj"]
    names.append("model.layers.1.mlp.gate_proj")
    choose = chooser(QuantConfig("wint8", skip=(pattern,)))
    assert {n for n in names if choose(spec(n)).name == "none"} == spared


def test_the_head_can_have_a_method_of_its_own() -> None:
    text = '{"quantization": "block_wise_fp8", "lm_head": "wint8", "skip": ["model.layers.0"]}'
    config = parse_quantization(None, text, KNOWN)
    assert config.name_for("lm_head") == "wint8"
    assert config.name_for("model.layers.1.mlp.down_proj") == "block_wise_fp8"
    assert config.name_for("model.layers.0.mlp.down_proj") == "none"
    assert parse_quantization(None, '{"quantization": "wint8", "lm_head": "none"}', KNOWN).head == "none"
    spared = '{"quantization": "wint8", "lm_head": "wint8", "skip": ["lm_head"]}'
    assert parse_quantization(None, spared, KNOWN).name_for("lm_head") == "none"


def test_one_instance_serves_all_layers_and_has_the_options() -> None:
    choose = chooser(QuantConfig("wint8", {"bits": 8}, skip=("lm_head",)))
    assert choose(spec("a")) is choose(spec("b"))
    assert choose(spec("a")).config == {"bits": 8}
    assert choose(spec("lm_head")).config == {}


def test_a_layer_the_method_cannot_run_is_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedOpError, match=r"'wint8': model.big: .*want <= 64, have 128"):
        chooser(QuantConfig("wint8"))(spec("model.big", 128))


def test_a_device_without_the_method_says_so() -> None:
    only = QuantChooser(QuantConfig("wint8", skip=("x",)), {"wint8": Wint8}, DEVICE, PLATFORM, None)
    with pytest.raises(QuantError, match="want one of wint8; have 'none'"):
        only(spec("x"))


def test_mixed_methods() -> None:
    """Dense layers, experts and the cache each by their own; a missing type is none."""
    text = '{"quantization": "mix_quant", "dense_quant_type": "wint8", "kv_cache_quant_type": "int8"}'
    config = parse_quantization(None, text, KNOWN)
    assert (config.name, config.experts, config.kv_cache) == ("wint8", "none", "int8")
    assert config.name_for("model.layers.1.mlp.down_proj") == "wint8"
    nothing = parse_quantization(None, '{"quantization": "mix_quant"}', KNOWN)
    assert nothing.name_for("model.layers.1.mlp.down_proj") == "none"
    experts = parse_quantization(None, '{"quantization": "mix_quant", "moe_quant_type": "wint8"}', KNOWN)
    assert experts.name_for("model.layers.1.mlp.down_proj") == "none"
    assert experts.name_for_experts("model.layers.1.mlp.experts") == "wint8"
    with pytest.raises(QuantError, match="have 'w9'"):
        parse_quantization(None, '{"quantization": "mix_quant", "moe_quant_type": "w9"}', KNOWN)
    with pytest.raises(QuantError, match="have 'w9'"):
        parse_quantization(None, '{"quantization": "mix_quant", "dense_quant_type": "w9"}', KNOWN)


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({}, "wint8"),
        ({"moe_quant_type": "block_wise_fp8"}, "block_wise_fp8"),
        ({"moe_quant_type": "none"}, "none"),
        ({"moe_quant_type": None}, "none"),
        ({"is_quantized": True}, "none"),  # converted before experts were
        ({"is_quantized": True, "moe_quant_type": "wint8"}, "wint8"),
        ({"skip": ["experts"]}, "none"),
        ({"skip": ["*.experts.*"]}, "none"),
        ({"skip": ["model.layers.1"]}, "none"),
        ({"skip": ["model.layers.0"]}, "wint8"),
        ({"layers": {"gate_proj": "block_wise_fp8"}}, "block_wise_fp8"),
        ({"layers": {"down_proj": "block_wise_fp8"}}, "wint8"),
        ({"layers": {"experts": "block_wise_fp8"}, "moe_quant_type": "none"}, "block_wise_fp8"),
    ],
    ids=str,
)
def test_experts_go_with_dense_layers_unless_told_otherwise(more: dict[str, Any], name: str) -> None:
    config = parse_quantization({"quantization": "wint8", **more}, "", KNOWN)
    assert config.name_for_experts("model.layers.1.mlp.experts") == name


def test_experts_of_a_method_without_them_are_refused() -> None:
    experts = ExpertSpec(64, 32, 4, dt.bfloat16, dt.float32, "mlp.experts")
    why = r"'wint8': mlp.experts: .*want expert weights, have dense.*\"moe_quant_type\": \"none\""
    with pytest.raises(UnsupportedOpError, match=why):
        chooser(QuantConfig("wint8")).experts(experts)
    plain = chooser(QuantConfig("wint8", experts="none")).experts(experts)
    assert isinstance(plain, PlainExperts)
    big = ExpertSpec(128, 32, 4, dt.bfloat16, dt.float32, "mlp.experts")
    with pytest.raises(UnsupportedOpError, match="want <= 64, have 128"):
        chooser(QuantConfig("wint8")).experts(big)


def test_a_plug_in_without_expert_kernels_offers_none() -> None:
    """So that the refusal above is its own; plain experts go to the op."""
    methods = pytest.importorskip("fd_xpu.quant", reason="the plug-in is not installed").METHODS
    with_experts = {m.name for m in methods if m.experts is not QuantMethod.experts}
    assert with_experts <= {"none"}


def test_single_layers_have_methods_of_their_own() -> None:
    text = '{"quantization": "wint8", "layers": {"down_proj": "none", "model.layers.0": "block_wise_fp8"}}'
    config = parse_quantization(None, text, KNOWN)
    assert config.name_for("model.layers.0.mlp.down_proj") == "none"
    assert config.name_for("model.layers.0.mlp.gate_proj") == "block_wise_fp8"
    assert config.name_for("model.layers.1.mlp.gate_proj") == "wint8"
    with pytest.raises(QuantError, match=r"want \{pattern: method\} under layers; have \['x'\]"):
        parse_quantization(None, '{"quantization": "wint8", "layers": ["x"]}', KNOWN)


def test_int4_leaves_the_head_at_int8() -> None:
    known = ("wint4", "wint8", "w4a8", "w8a8", "none")
    for name, head in (("wint4", "wint8"), ("w4a8", "w8a8")):
        assert parse_quantization(None, name, known).name_for("lm_head") == head
    own = parse_quantization(None, '{"quantization": "wint4", "lm_head": "wint4"}', known)
    assert own.name_for("lm_head") == "wint4"
