"""What the conformance kit cannot ask of row-wise kernels: data that only the device sees, fused forms
against the ops they stand for, special values."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fd_cuda")
from fd_core.api.dtype import FLOATS
from fd_core.host.session import Session
from fd_core.ops.catalogue import find
from fd_core.testkit.check import run_oracle
from tests.cuda.gpu import gpu_session

pytestmark = pytest.mark.device("cuda")
types = pytest.mark.parametrize("dtype", [t.numpy() for t in FLOATS], ids=str)


@pytest.fixture(scope="module")
def session() -> Session:
    return gpu_session()


def run(session: Session, name: str, **values: Any) -> dict[str, Any]:
    """Every parameter after the call; outputs are given."""
    if not session.ops.provides(name):
        pytest.skip(f"no kernel for {name}")
    put, get = session.platform.from_host, session.platform.to_host
    call = {p.name: values[p.name] for p in find(name).spec.params}
    placed = {k: put(v) if isinstance(v, np.ndarray) else v for k, v in call.items()}
    getattr(session.ops, name)(*placed.values())
    return {k: get(placed[k]) if isinstance(v, np.ndarray) else v for k, v in call.items()}


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def bits(array: Any) -> bytes:
    return bytes(np.ascontiguousarray(array).tobytes())


class TestDataOutOfRange:
    """Nothing beyond the tensors is touched, and rows that are named rightly come out right."""

    def test_embedding(self, session: Session) -> None:
        table, out = normal(0, 6, 40), np.full((4, 40), 7, np.float32)
        ids = np.array([5, -1, 6, 1 << 40])
        got = run(session, "embedding", ids=ids, weight=table, out=out)["out"]
        assert bits(got[0]) == bits(table[5])
        assert (got[1:] == 7).all()

    def test_positions(self, session: Session) -> None:
        q, k, table = normal(0, 3, 2, 16), normal(1, 3, 1, 16), normal(2, 4, 16)
        places = {"position_ids": np.array([4, 1, -1]), "cos_sin_cache": table}
        got = run(
            session, "fused_rotary_position_encoding", query=q, key=k, head_size=16, is_neox=True, **places
        )
        assert bits(got["query"][[0, 2]]) == bits(q[[0, 2]])
        assert not np.array_equal(got["query"][1], q[1])

    @pytest.mark.parametrize("mode", ["auto", "fp8_e4m3"])
    def test_slots(self, session: Session, mode: str) -> None:
        kind = np.float32 if mode == "auto" else np.uint8
        pools = np.full((2, 2, 4, 1, 8), 9, kind)
        slots, rows = np.array([8, 3, -5, 1 << 40]), normal(0, 4, 1, 8)
        scales = [None, None] if mode == "auto" else [np.ones((2, 4, 1), np.float32)] * 2
        call = {"key": rows, "value": rows, "key_cache": pools[0], "value_cache": pools[1]}
        call |= {"slot_mapping": slots, "k_scale": scales[0], "v_scale": scales[1], "kv_cache_dtype": mode}
        got = run(session, "reshape_and_cache_flash", **call)
        for name in ("key_cache", "value_cache"):
            assert (np.delete(got[name].reshape(8, 8), 3, axis=0) == 9).all()
            assert not (got[name].reshape(8, 8)[3] == 9).all()

    def test_blocks(self, session: Session) -> None:
        cache = np.arange(12, dtype=np.int64).reshape(4, 3)
        pairs = {"src_block_ids": np.array([0, 4, 1]), "dst_block_ids": np.array([2, 3, -1])}
        got = run(session, "copy_blocks", cache=cache, block_dim=0, **pairs)["cache"]
        assert bits(got) == bits(cache[[0, 1, 0, 3]])


BLOCKING = """
import numpy as np
from fd_core.host.session import open_session
s = open_session("cuda", fallback="allow")
put = s.platform.from_host
f = lambda *shape: put(np.zeros(shape, np.float32))
calls = [
    lambda: s.ops.embedding(put(np.array([0, 9])), f(4, 8), f(2, 8)),
    lambda: s.ops.gather_tokens(f(4, 8), put(np.array([-3, 4])), f(2, 8)),
    lambda: s.ops.copy_blocks(f(4, 8), put(np.array([0, 1])), put(np.array([2, 2])), 0),
]
for call in calls:
    try:
        call()
        print("taken")
    except ValueError as error:
        print(error)
"""


def test_blocking_mode_refuses_wrong_data(session: Session) -> None:
    env = {**os.environ, "FD_CUDA_BLOCKING": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKING], env=env, capture_output=True, text=True, check=True
    )
    ids, rows, pairs = done.stdout.splitlines()
    assert ids == "embedding.ids: want indices in [0, 4), have 9 at position 1"
    assert rows.startswith("gather_tokens.indices: want indices in [")
    assert pairs.startswith("copy_blocks.dst_block_ids: want each block once, have 2 again")


@types
@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("dim", [64, 128])
def test_rope_and_cache_equals_the_three_ops(session: Session, dtype: Any, neox: bool, dim: int) -> None:
    """Bit for bit: the norm adds up in the same order, and every step rounds."""
    tokens, q_heads, kv_heads, eps = 9, 4, 2, 1e-6
    q_size, kv_size = q_heads * dim, kv_heads * dim
    qkv, weights = normal(0, tokens, q_size + 2 * kv_size, dtype=dtype), normal(1, 2, dim, dtype=dtype)
    places = {"position_ids": np.arange(tokens), "cos_sin_cache": normal(2, tokens, dim)}
    norms = {"q_norm_weight": weights[0], "k_norm_weight": weights[1], "eps": eps}
    pools = {n: normal(3, 3, 4, kv_heads, dim, dtype=dtype) for n in ("key_cache", "value_cache")}
    pools["slot_mapping"] = np.array([3, -1, 5, 11, 0, 7, -1, 8, 2])
    got = run(session, "rope_and_cache", qkv=qkv, is_neox=neox, **places, **norms, **pools)
    sizes = {"q_size": q_size, "kv_size": kv_size, "head_dim": dim}
    normed = run(session, "qk_rmsnorm_fused", qkv=qkv, **norms, **sizes)["qkv"]
    q, k, v = (np.ascontiguousarray(x) for x in np.split(normed, [q_size, q_size + kv_size], axis=1))
    style = {"head_size": dim, "is_neox": neox}
    turned = run(session, "fused_rotary_position_encoding", query=q, key=k, **places, **style)
    key, value = (x.reshape(tokens, kv_heads, dim) for x in (turned["key"], v))
    mode = {"k_scale": None, "v_scale": None, "kv_cache_dtype": "auto"}
    want = run(session, "reshape_and_cache_flash", key=key, value=value, **pools, **mode)
    assert bits(got["qkv"]) == bits(np.concatenate([turned["query"], turned["key"], v], axis=1))
    for name in ("key_cache", "value_cache"):
        assert bits(got[name]) == bits(want[name])


@types
def test_special_values_in_an_fp8_cache(session: Session, dtype: Any) -> None:
    """Zeros, subnormal scales, ties and a NaN as the oracle has them."""
    rows = normal(0, 6, 2, 16, dtype=dtype)
    rows[0] = 0
    rows[1] *= 2.0**-14
    rows[2, :, :8] = 448 * np.arange(1, 9) / 16 + 0.5
    rows[3, 0, 5] = np.nan
    rows[4] = -rows[5]
    pools = {n: np.zeros((2, 4, 2, 16), np.uint8) for n in ("key_cache", "value_cache")}
    scales = {n: np.zeros((2, 4, 2), np.float32) for n in ("k_scale", "v_scale")}
    call = {
        "key": rows,
        "value": rows[::-1].copy(),
        "slot_mapping": np.arange(6),
        "kv_cache_dtype": "fp8_e4m3",
    }
    definition = find("reshape_and_cache_flash")
    got = run(session, definition.name, **call, **pools, **scales)
    want = run_oracle(definition, call | pools | scales)
    for name in (*pools, *scales):
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def test_repeated_index_in_a_scatter_last_token_wins(session: Session) -> None:
    tokens = 300
    rows, kinds = normal(0, tokens, 40), (np.arange(tokens) % 2).astype(np.int32)
    index = np.zeros(tokens, np.int32)
    buffers = {n: np.zeros((2, 40), np.float32) for n in ("text_input", "image_input")}
    places = {"token_type_ids": kinds, "text_index": index, "image_index": index, "is_scatter": True}
    got = run(session, "text_image_gather_scatter", input=rows, **buffers, **places)
    assert bits(got["text_input"][0]) == bits(rows[tokens - 2])
    assert bits(got["image_input"][0]) == bits(rows[tokens - 1])


def test_chained_small_kernels_see_each_other(session: Session) -> None:
    """Launches that overlap the kernel before them still read what it wrote: 64 in a captured row."""
    if not session.ops.provides("gelu_tanh"):
        pytest.skip("no kernel for gelu_tanh")
    platform, x = session.platform, normal(0, 1, 4096)
    a, b = platform.from_host(x), platform.from_host(np.zeros_like(x))
    silu = session.ops.silu

    def chain() -> None:
        for _ in range(32):
            silu(a, b)
            silu(b, a)

    graph = platform.capture(chain)
    assert graph is not None
    for _ in range(20):
        a.copy_from(platform.from_host(x))
        graph.replay()
        platform.synchronize()
        first = platform.to_host(a)
        a.copy_from(platform.from_host(x))
        for _ in range(32):
            silu(a, b)
            platform.synchronize()
            silu(b, a)
            platform.synchronize()
        assert bits(first) == bits(platform.to_host(a))
