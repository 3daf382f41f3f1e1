"""Other weights of the same function, which lie on no quantisation grid.

A model that was once quantised keeps weights on that format's grid, and the format (and its relatives)
then loses less than it would on a model as trained. Three exact changes of a Llama's weights undo that,
with a factor of 2^u, u uniform in [-1/4, 1/4], for each channel:

- the gains of the norms before attention and feed-forward, and the columns that read them;
- the rows that make values, and the columns of the output projection;
- the rows of `up`, and the columns of `down`.

Factors differ within a block of a row, so that its values have no step in common any more; they are too
small to make outliers. Gains are not folded into the matrices, which would: at 4 bits that costs SmolLM2
more than the format does.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Weights = MutableMapping[str, Array]
SPAN = 0.25


def off_grid(weights: Weights, config: dict[str, Any], seed: int = 0) -> None:
    """Change float32 `weights` (by checkpoint name) in place."""
    rng = np.random.default_rng(seed)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        scale_inputs(weights, layer, "input_layernorm", ("q_proj", "k_proj", "v_proj"), "self_attn.", rng)
        scale_inputs(weights, layer, "post_attention_layernorm", ("gate_proj", "up_proj"), "mlp.", rng)
        scale_values(weights, layer, config, rng)
        up, down = weights[f"{layer}mlp.up_proj.weight"], weights[f"{layer}mlp.down_proj.weight"]
        factors = draw(rng, len(up))
        up *= factors[:, None]
        down /= factors


def draw(rng: np.random.Generator, count: int) -> Array:
    return np.exp2(rng.uniform(-SPAN, SPAN, count)).astype(np.float32)


def scale_inputs(
    weights: Weights, layer: str, norm: str, readers: tuple[str, ...], block: str, rng: np.random.Generator
) -> None:
    gain = weights[f"{layer}{norm}.weight"]
    factors = draw(rng, len(gain))
    gain /= factors
    for reader in readers:
        weights[f"{layer}{block}{reader}.weight"] *= factors


def scale_values(weights: Weights, layer: str, config: dict[str, Any], rng: np.random.Generator) -> None:
    """Query heads of a group read the same values."""
    v, o = weights[f"{layer}self_attn.v_proj.weight"], weights[f"{layer}self_attn.o_proj.weight"]
    factors = draw(rng, len(v))
    v *= factors[:, None]
    group = config["num_attention_heads"] // config["num_key_value_heads"]
    o /= np.repeat(factors.reshape(-1, config["head_dim"]), group, axis=0).reshape(-1)
