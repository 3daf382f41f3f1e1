"""What the conformance kit's cases do not reach in the experts' products: tiles of every height on tensor
cores, more slots than one block sorts, rows that must not depend on how many there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("fd_cuda")
from fd_cuda import library

from fd_core.api import dtype as dt
from fd_core.host.session import Session
from fd_core.ops.catalogue import find
from tests.cuda.gpu import gpu_session

pytestmark = pytest.mark.device("cuda")
Array = np.ndarray[Any, Any]
HALVES = [dt.bfloat16.numpy(), dt.float16.numpy()]


@pytest.fixture(scope="module")
def session() -> Session:
    return gpu_session("moe_expert_ffn")


def normal(seed: int, *shape: int, scale: float = 1.0, dtype: Any = np.float32) -> Array:
    return (scale * np.random.default_rng(seed).standard_normal(shape, np.float32)).astype(dtype)


def ffn(
    session: Session, x: Array, counts: list[int], up: Array, down: Array, bias: Array | None = None
) -> Array:
    """`x` [rows, hidden], or [experts, capacity, hidden] with `counts` in use."""
    put, low = session.platform.from_host, x.ndim == 3
    out, numbers = put(np.full_like(x, 7)), put(np.array(counts if low else np.cumsum(counts)))
    absent = (None,) * 4
    kernel = library.function("moe_expert_ffn")
    shift = None if bias is None else put(bias)
    kernel(put(x), numbers, put(up), put(down), shift, *absent, "none", low, out)
    return session.platform.to_host(out)


def experts(number: int, hidden: int, inner: int, dtype: Any) -> tuple[Array, Array]:
    up = normal(1, number, hidden, 2 * inner, scale=hidden**-0.5, dtype=dtype)
    return up, normal(2, number, inner, hidden, scale=inner**-0.5, dtype=dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("counts", "hidden", "inner"),
    [
        ([1, 0, 7, 3], 264, 72),
        ([40, 17, 0, 90], 200, 136),
        ([300, 1, 129, 128, 0], 520, 88),
        ([1300, 70, 0, 64, 129], 136, 264),  # more than a band of tiles; two columns of them
    ],
)
def test_tiles_of_every_height(
    session: Session, counts: list[int], hidden: int, inner: int, dtype: Any
) -> None:
    """Sums of at most 520 products near 1 in all; the op's tolerance argues the roundings."""
    x = normal(0, sum(counts) + 5, hidden, dtype=dtype)
    up, down = experts(len(counts), hidden, inner, dtype)
    bias = normal(3, len(counts), 2 * inner, scale=0.25, dtype=dtype)
    got = ffn(session, x, counts, up, down, bias)
    want = np.empty_like(x)
    definition = find("moe_expert_ffn")
    definition.oracle(x, np.cumsum(counts), up, down, bias, *(None,) * 4, "none", False, want)
    rtol, atol = definition.tolerance.of(dt.dtype(x.dtype.name))
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol, atol)
    assert not got[-5:].any()


def test_a_row_does_not_depend_on_how_many_there_are(session: Session) -> None:
    """One row, a tile of 64, the tiles of many rows: the same bits."""
    dtype = dt.bfloat16.numpy()
    x = normal(3, 400, 256, dtype=dtype)
    up, down = experts(2, 256, 96, dtype)
    whole = ffn(session, x, [300, 100], up, down)
    for rows in (1, 60):
        part = np.concatenate([x[:rows], x[300 : 300 + rows]])
        got = ffn(session, part, [rows, rows], up, down)
        assert got[:rows].tobytes() == whole[:rows].tobytes()
        assert got[rows:].tobytes() == whole[300 : 300 + rows].tobytes()


def test_rows_with_room_for_more(session: Session) -> None:
    """Room for 130 rows of each expert: tiles of 128, whose bits are those of the sorted rows."""
    dtype, counts = dt.bfloat16.numpy(), [130, 0, 77]
    up, down = experts(3, 264, 72, dtype)
    x = normal(6, 3, 130, 264, dtype=dtype)
    got = ffn(session, x, counts, up, down)
    rows = ffn(session, np.concatenate([x[e, :n] for e, n in enumerate(counts)]), counts, up, down)
    want = np.zeros_like(x)
    want[0], want[2, :77] = rows[:130], rows[130:]
    assert got.tobytes() == want.tobytes()


def test_more_slots_than_one_block_sorts(session: Session) -> None:
    """Places of 60,000 slots: stable by expert, as the oracle's."""
    tokens, number, k = 7500, 160, 8
    scores = np.random.default_rng(4).random((tokens, number), np.float32)
    x = normal(5, tokens, 8, dtype=dt.bfloat16.numpy())
    shapes: list[tuple[tuple[int, ...], Any]] = [((tokens * k, 8), x.dtype), ((number,), np.int64)]
    shapes += [((k, tokens), np.int32), ((tokens, k), np.float32)]
    shapes += [((tokens, k), np.int32), ((tokens * k,), np.int32)]
    want = [np.zeros(shape, kind) for shape, kind in shapes]
    put = session.platform.from_host
    placed = [put(array) for array in want]
    choice = (None, None, k, False, "", True)
    library.function("moe_expert_dispatch")(put(x), put(scores), *choice, *placed)
    find("moe_expert_dispatch").oracle(x, scores, *choice, *want)
    for got, expected in zip(placed, want, strict=True):
        assert session.platform.to_host(got).tobytes() == expected.tobytes()
