"""Swapping on a late device: blocks arrive where they belong, in the order of the calls."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fd_core.api.attention import KVLayout
from fd_core.api.dtype import float32
from fd_core.engine.kv_pools import KVPools, _runs
from fd_core.testkit.faults import Faults
from fd_core.testkit.simulated import SimulatedPlatform, on_host

LAYOUT = KVLayout((2, 3), 0, float32, 2 * 6 * 4)


def test_neighbours_travel_together() -> None:
    pairs = [(1, 5), (2, 6), (3, 9), (4, 10), (5, 11), (7, 2), (6, 3)]
    assert list(_runs(pairs)) == [(1, 5, 2), (3, 9, 3), (7, 2, 1), (6, 3, 1)]
    assert list(_runs([(0, 0)])) == [(0, 0, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_blocks_arrive_in_the_order_of_the_calls(seed: int) -> None:
    rng = random.Random(seed)
    platform = SimulatedPlatform(Faults())
    pools = KVPools(platform, None, [LAYOUT] * 2, blocks=9, host_blocks=9)
    models = {}
    for side, layers in (("device", pools.device), ("host", pools.host)):
        for i, layer in enumerate(layers):
            for name in ("key", "value"):
                array = on_host(getattr(layer, name)).numpy()
                array[...] = np.random.default_rng(seed + i).standard_normal(array.shape)
                models[side, i, name] = array.copy()
    for _ in range(6):
        count = rng.randrange(1, 9)
        start = rng.randrange(10 - count)
        sources = list(range(start, start + count)) if rng.random() < 0.5 else rng.sample(range(9), count)
        pairs = list(zip(sources, sorted(rng.sample(range(9), count)), strict=True))
        a, b = ("device", "host") if rng.random() < 0.5 else ("host", "device")
        (pools.swap_out if a == "device" else pools.swap_in)(pairs)
        for side, i, name in list(models):
            if side == b:
                for x, y in pairs:
                    models[b, i, name][y] = models[a, i, name][x]
    platform.synchronize()
    for (side, i, name), want in models.items():
        assert np.array_equal(on_host(getattr(getattr(pools, side)[i], name)).numpy(), want)
