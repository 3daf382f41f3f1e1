"""Other weights of the same function, which lie on no quantisation grid.

A model that was once quantised keeps weights on that format's grid, and the format (and its relatives)
then loses nothing the second time. Three exact changes of a Llama's weights undo that:

- the gains of the norms before attention and feed-forward go into the columns that read them;
- the values of each head are turned by an orthogonal matrix, and the output projection turns them back;
- each channel of the feed-forward is scaled so that its row in `up` and its column in `down` are equally
  long (cross-layer equalisation, Nagel et al. 2019).
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Weights = MutableMapping[str, Array]


def off_grid(weights: Weights, config: dict[str, Any], seed: int = 0) -> None:
    """Change float32 `weights` (by checkpoint name) in place."""
    rng = np.random.default_rng(seed)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        fold_gain(weights, layer, "input_layernorm", ("q_proj", "k_proj", "v_proj"), "self_attn.")
        fold_gain(weights, layer, "post_attention_layernorm", ("gate_proj", "up_proj"), "mlp.")
        turn_values(weights, layer, config["head_dim"], rng)
        equalise(weights, layer)


def fold_gain(weights: Weights, layer: str, norm: str, readers: tuple[str, ...], block: str) -> None:
    gain = weights[f"{layer}{norm}.weight"]
    for reader in readers:
        weights[f"{layer}{block}{reader}.weight"] *= gain
    weights[f"{layer}{norm}.weight"] = np.ones_like(gain)


def turn_values(weights: Weights, layer: str, dim: int, rng: np.random.Generator) -> None:
    """Query heads of a group read the same values, so they share its matrix."""
    v, o = weights[f"{layer}self_attn.v_proj.weight"], weights[f"{layer}self_attn.o_proj.weight"]
    groups = v.shape[0] // dim
    turns = np.stack([np.linalg.qr(rng.standard_normal((dim, dim)))[0] for _ in range(groups)])
    turns = turns.astype(np.float32)
    v[...] = np.einsum("gij,gjk->gik", turns, v.reshape(groups, dim, -1)).reshape(v.shape)
    heads = o.reshape(o.shape[0], groups, -1, dim)
    o[...] = np.einsum("ogqj,gij->ogqi", heads, turns).reshape(o.shape)


def equalise(weights: Weights, layer: str) -> None:
    up, down = weights[f"{layer}mlp.up_proj.weight"], weights[f"{layer}mlp.down_proj.weight"]
    scale = np.sqrt(np.linalg.norm(down, axis=0) / np.maximum(np.linalg.norm(up, axis=1), 1e-20))
    scale = np.where(scale > 0, scale, 1)
    up *= scale[:, None]
    down /= scale
