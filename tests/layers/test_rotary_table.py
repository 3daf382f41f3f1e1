"""Rotary tables: against the Hugging Face frequencies, the written formulas, and bad settings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fd_core.layers.rotary import RotaryError, frequencies, rotary_dim, rotary_table, softmax_factor

BASE = {"rope_theta": 50000.0, "max_position_embeddings": 4096}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 2048}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 2048}
SETTINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0, **LLAMA3},
    YARN,
    {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25},
    {**YARN, "mscale": 1.0, "mscale_all_dim": 0.707},
    {**YARN, "mscale": 0.5},
    {**YARN, "truncate": False},
    {**YARN, "partial_rotary_factor": 0.5},
    {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.25},
]


@pytest.mark.reference
@pytest.mark.parametrize("change", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("positions", [1024, 10000])
def test_frequencies_equal_transformers(change: dict[str, Any], positions: int) -> None:
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    settings = {**BASE, **change}
    config = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=4, max_position_embeddings=4096, rope_parameters=dict(settings)
    )
    init = rope_utils.ROPE_INIT_FUNCTIONS[change["rope_type"]]
    want, want_factor = init(config, "cpu", seq_len=positions)
    got, factor = frequencies(settings, rotary_dim(settings, 128), positions)
    np.testing.assert_allclose(got, want.numpy(), rtol=3e-6)  # theirs is float32
    assert factor == pytest.approx(want_factor)


def test_default_table_by_formula() -> None:
    table = rotary_table({}, 8, 20000)
    assert table.shape == (20000, 8)
    assert table.dtype == np.float32
    for position in (0, 1, 8191, 8192, 19999):  # both sides of a chunk's end
        for j in range(4):
            angle = position * 10000.0 ** (-2 * j / 8)
            assert table[position, j] == pytest.approx(math.cos(angle), abs=1e-7)
            assert table[position, 4 + j] == pytest.approx(math.sin(angle), abs=1e-7)


def test_attention_factor_scales_both_halves() -> None:
    plain, scaled = (rotary_table({**BASE, **YARN, "attention_factor": f}, 16, 9) for f in (1.0, 1.5))
    np.testing.assert_allclose(scaled, 1.5 * plain, rtol=1e-6, atol=1e-7)


def test_partial_rotation_uses_its_own_exponent() -> None:
    settings = {"partial_rotary_factor": 0.5}
    assert rotary_dim(settings, 64) == 32
    assert np.array_equal(rotary_table(settings, 64, 5), rotary_table({}, 32, 5))


def test_deepseek_yarn_fills_in_its_defaults() -> None:
    """mscale 1 and mscale_all_dim 0 where absent; the frequencies are yarn's."""
    settings = {**BASE, **YARN, "rope_type": "deepseek_yarn"}
    at_eight = 0.1 * math.log(8.0) + 1.0
    assert frequencies(settings, 64, 10)[1] == pytest.approx(at_eight)
    assert frequencies({**settings, "mscale": 0.5}, 64, 10)[1] == pytest.approx(0.05 * math.log(8.0) + 1.0)
    both = {**settings, "mscale": 1.0, "mscale_all_dim": 1.0, "attn_factor": 2.0}
    assert frequencies(both, 64, 10)[1] == pytest.approx(2.0)
    assert np.array_equal(frequencies(settings, 64, 10)[0], frequencies({**BASE, **YARN}, 64, 10)[0])


def test_extrapolation_factor_zero_share() -> None:
    """A small share of kept frequencies brings all of them near the stretched ones."""
    small = frequencies({**BASE, **YARN, "extrapolation_factor": 1e-9}, 64, 10)[0]
    np.testing.assert_allclose(small, frequencies(BASE, 64, 10)[0] / 8.0, rtol=1e-7)


def test_softmax_factor_of_latent_attention() -> None:
    assert softmax_factor({**YARN, "mscale_all_dim": 1.0}) == pytest.approx((0.1 * math.log(8) + 1) ** 2)
    assert softmax_factor({**YARN, "mscale_all_dim": 0}) == 1.0
    assert softmax_factor({}) == 1.0


def test_dynamic_is_plain_up_to_the_trained_length() -> None:
    settings = {**BASE, "rope_type": "dynamic", "factor": 2.0}
    assert np.array_equal(frequencies(settings, 64, 4096)[0], frequencies(BASE, 64, 4096)[0])
    assert frequencies(settings, 64, 8192)[0][-1] < frequencies(BASE, 64, 8192)[0][-1]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"rope_type": "spiral"}, r"rope_type: want one of default, linear, .*llama3, have 'spiral'"),
    ({"type": "spiral"}, r"have 'spiral'"),
    ({"rope_type": "linear"}, r"want a number > 0 for 'factor', have None"),
    ({"rope_type": "linear", "factor": -2}, r"'factor', have -2"),
    ({"rope_type": "linear", "factor": "4"}, r"'factor', have '4'"),
    ({"rope_theta": float("nan")}, r"'rope_theta', have nan"),
    ({"rope_type": "dynamic", "factor": 2.0}, r"'max_position_embeddings', have None"),
    ({"rope_type": "llama3", "factor": 8.0, **LLAMA3, "high_freq_factor": 1.0}, r"high_freq_factor > low"),
    ({"rope_type": "yarn", "factor": 2.0}, r"'original_max_position_embeddings', have None"),
    ({"partial_rotary_factor": 1.5}, r"want an even rotary size in \(0, 64\], have 96"),
    ({"partial_rotary_factor": 0.0}, r"want an even rotary size in \(0, 64\], have 0"),
]


@pytest.mark.parametrize(("settings", "match"), BAD)
def test_bad_settings_are_named(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(RotaryError, match=match):
        rotary_table(settings, 64, 4)


def test_an_odd_rotary_size_is_refused() -> None:
    with pytest.raises(RotaryError, match="have 3"):
        rotary_dim({"partial_rotary_factor": 0.5}, 6)
