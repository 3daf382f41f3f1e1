"""Float8 on a GPU: what `cutlass_scaled_mm`'s cases do not reach (which kernel or library multiplies,
shifted outputs), and method "wfp8afp8" in a layer and in a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fd_cuda")
from fd_cuda import library
from fd_cuda.arch import simulated_devices
from fd_cuda.quant_fp8 import CudaFloat8Linear

from fd_core.api import dtype as dt
from fd_core.api.tensor import Tensor
from fd_core.api.verdict import ReasonCode
from fd_core.engine.build import EMBEDDED
from fd_core.host.session import Session
from fd_core.llm import LLM, SamplingParams
from tests.cuda.gpu import gpu_session
from tests.quantization.test_wfp8afp8 import E4M3, Array, Layer, layer, normal, rounded, spec

on_gpu = pytest.mark.device("cuda")
HALVES = [dt.bfloat16, dt.float16]
halves = pytest.mark.parametrize("kind", HALVES, ids=str)
#: (N, K): whole tiles and windows, and parts of them.
SHAPES = [(16, 16), (112, 48), (96, 1040), (640, 4096), (48, 14336)]
#: From so many products on, more than eight rows are cuBLASLt's (float8_product.cu).
LIBRARY = 1 << 26
#: Sums of products near 1 in all: float32 chains by our own kernels. The float8 tensor cores that the
#: library uses keep some 13 bits below the largest of 32 products and drop the rest: up to 2^-13 of it at
#: each of K terms, of either sign, the largest being some 16 / sqrt(K). 6e-4 was the most on sm_90, for
#: torch._scaled_mm too.
OWN, THEIRS = 3e-5, 1e-3


@pytest.fixture(scope="module")
def session() -> Session:
    found = gpu_session("linear_fp8_dynamic")
    if found.device.arch_rank < 89:
        pytest.skip(f"want sm_89 or newer, have {found.device.arch}")
    return found


# -- without a GPU ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sm", [70, 75, 80, 86, 89, 90, 100, 120])
def test_where_it_is_taken(sm: int) -> None:
    device = next(info for _, info in simulated_devices() if info.arch_rank == sm)
    verdict = CudaFloat8Linear.supports(spec(64, 32), device)
    assert verdict.ok == (sm >= 89)
    if sm < 89:
        assert [r.code for r in verdict.reasons] == [ReasonCode.ARCH]
        assert f"want sm_89 or newer, have sm_{sm}; fix: use quantization w8a8" in str(verdict)


def test_what_every_device_refuses_is_refused_too() -> None:
    device = next(info for _, info in simulated_devices() if info.arch_rank == 75)
    verdict = CudaFloat8Linear.supports(spec(72, 33, dt.float32), device)
    codes = [r.code for r in verdict.reasons]
    assert codes == [ReasonCode.ARCH, ReasonCode.DTYPE, ReasonCode.SHAPE, ReasonCode.SHAPE]


# -- cutlass_scaled_mm --------------------------------------------------------------------------------


def sides(m: int, n: int, k: int) -> tuple[Array, Array]:
    return tuple((64 * normal(seed, size, k)).astype(E4M3) for seed, size in ((1, m), (2, n)))  # type: ignore[return-value]


def scales(count: int, k: int, seed: int) -> Array:
    size = 1 / (64 * k**0.25)
    return np.random.default_rng(seed).uniform(size / 2, size, count).astype(np.float32)


def shifted(session: Session, array: Array) -> Tensor:
    """On the device, not at a 16-byte boundary."""
    start = 8 // array.itemsize
    room = session.platform.from_host(np.append(np.zeros(start, array.dtype), array.reshape(-1)))
    return room.slice(start, room.numel).view(*array.shape)


@on_gpu
@halves
@pytest.mark.parametrize("shift", ["none", "output", "scales"])
@pytest.mark.parametrize("scaling", ["row", "tensor", "rows", "columns"])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(9, 8704, 1040), (130, 1024, 1040), (520, 4096, 1040), (520, 272, 4096)]
)
def test_products_by_the_library(
    session: Session, m: int, n: int, k: int, scaling: str, shift: str, kind: Any
) -> None:
    """Every kind of scales, its own epilogue and ours, tensors at 16-byte boundaries and not."""
    a, b = sides(m, n, k)
    a_scales = scales(m if scaling in ("row", "rows") else 1, k, 3)
    b_scales = scales(n if scaling in ("row", "columns") else 1, k, 4)
    bias = normal(5, n, kind=kind)
    put = session.platform.from_host
    place = {name: partial(shifted, session) if name == shift else put for name in ("output", "scales")}
    out = place["output"](np.full((m, n), 7, kind.numpy()))
    both = map(place["scales"], (a_scales, b_scales))
    session.ops.cutlass_scaled_mm(out, put(a), put(b), *both, put(bias))
    want = (a.astype(np.float64) * a_scales.reshape(-1, 1)) @ (
        b.astype(np.float64) * b_scales.reshape(-1, 1)
    ).T
    ulp = 2.0**-8 if kind == dt.bfloat16 else 2.0**-11
    np.testing.assert_allclose(
        session.platform.to_host(out), want + bias.astype(np.float64), rtol=1.01 * ulp, atol=THEIRS
    )


@on_gpu
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_few_rows_are_a_rows_own(session: Session, n: int, k: int) -> None:
    """Right to float32, and a row's bits are those that it has alone, among eight, and among seventy."""
    a, b = sides(70, n, k)
    a_scales, b_scales = scales(70, k, 3), scales(n, k, 4)
    put = session.platform.from_host
    weights = put(b), put(b_scales)
    want = (a.astype(np.float64) * a_scales[:, None]) @ (b.astype(np.float64) * b_scales[:, None]).T

    def call(rows: slice) -> Array:
        out = put(np.full((rows.stop - rows.start, n), 7, np.float16))
        session.ops.cutlass_scaled_mm(out, put(a[rows]), weights[0], put(a_scales[rows]), weights[1], None)
        return session.platform.to_host(out)

    alone = call(slice(5, 6))
    np.testing.assert_allclose(alone, want[5:6], rtol=1.01 * 2.0**-11, atol=OWN)
    for count in (count for count in (8, 17, 64, 70) if count <= 8 or count * n * k < LIBRARY):
        among = call(slice(0, count))
        np.testing.assert_array_equal(among[5:6], alone)
        np.testing.assert_allclose(among, want[:count], rtol=1.01 * 2.0**-11, atol=OWN)


@on_gpu
def test_codes_that_are_no_numbers_spoil_their_row_and_column(session: Session) -> None:
    a, b = sides(40, 1024, 2048)
    a[3, 7], b[9, 11] = np.nan, np.nan
    put, ones = session.platform.from_host, np.full(1, 2.0**-12, np.float32)
    for rows in (1, 8, 40):
        out = put(np.zeros((rows, 1024), np.float16))
        part = a[3 : 3 + rows] if rows < 40 else a
        session.ops.cutlass_scaled_mm(out, put(part), put(b), put(ones), put(ones), None)
        got = np.isnan(session.platform.to_host(out))
        row = 0 if rows < 40 else 3
        assert got[row].all()
        assert got[:, 9].all()
        assert not np.delete(np.delete(got, row, 0), 9, 1).any()


# -- the method -----------------------------------------------------------------------------------------


def on_device(session: Session, weight: Array, kind: Any) -> Layer:
    """The layer of the oracle's test, with the device's own method."""
    made = layer(session, weight, kind)
    method = CudaFloat8Linear(session.device, session.platform, session.ops, {})
    return Layer(session, method, made.columns, made.packed)


@on_gpu
@halves
@pytest.mark.parametrize("rows", [0, 1, 3, 8, 9, 65, 300])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_layer(session: Session, n: int, k: int, rows: int, kind: Any) -> None:
    weight = (normal(0, n, k) / np.float32(k**0.5)).astype(dt.bfloat16.numpy())
    one, bias, x = on_device(session, weight, kind), normal(1, n, kind=kind), normal(2, rows, k, kind=kind)
    np.testing.assert_array_equal(one.weight(), rounded(weight))
    want = rounded(x) @ rounded(weight).T + bias.astype(np.float64)
    ulp = 2.0**-8 if kind == dt.bfloat16 else 2.0**-11
    atol = THEIRS if rows > 8 and rows * n * k >= LIBRARY else OWN
    np.testing.assert_allclose(one(x, bias), want, rtol=1.01 * ulp, atol=atol)


@on_gpu
def test_rows_with_gaps(session: Session) -> None:
    one = on_device(session, normal(0, 64, 128), dt.bfloat16)
    wide = normal(3, 6, 160, kind=dt.bfloat16)
    put = session.platform.from_host
    out = put(np.zeros((6, 64), dt.bfloat16.numpy()))
    one.method.apply(put(wide).slice(0, 128, dim=1), one.packed, None, out)
    same = one(np.ascontiguousarray(wide[:, :128]))
    np.testing.assert_array_equal(session.platform.to_host(out), same)


@on_gpu
def test_wrong_inputs_are_refused(session: Session) -> None:
    put = session.platform.from_host
    x, codes = put(normal(1, 4, 64, kind=dt.bfloat16)), put(normal(2, 32, 64).astype(E4M3))
    out, steps = put(np.zeros((4, 32), dt.bfloat16.numpy())), put(np.ones(32, np.float32))
    run = library.function("linear_fp8_dynamic")
    with pytest.raises(TypeError, match=r"\.x: want bfloat16 or float16, have float32"):
        run(put(normal(1, 4, 64)), codes, steps, None, out)
    with pytest.raises(TypeError, match=r"\.codes: want dtype float8_e4m3fn"):
        run(x, put(np.zeros((32, 64), np.int8)), steps, None, out)
    with pytest.raises(ValueError, match=r"\.codes: want size 64 in dimension 1"):
        run(x, put(np.zeros((32, 48), E4M3)), steps, None, out)
    with pytest.raises(ValueError, match=r"\.scales: want size 32"):
        run(x, codes, put(np.ones(16, np.float32)), None, out)
    narrow = put(np.zeros((4, 40), dt.bfloat16.numpy()))
    with pytest.raises(ValueError, match=r"\.codes: want multiples of 16 by 16"):
        run(narrow, put(np.zeros((32, 40), E4M3)), steps, None, out)


@on_gpu
def test_the_ops_give_what_the_layer_gives(session: Session) -> None:
    """core's method over the same ops has the same bits, up to eight rows and beyond."""
    made = layer(session, normal(4, 640, 1024), dt.bfloat16)
    own = on_device(session, normal(4, 640, 1024), dt.bfloat16)
    for rows in (1, 8, 33, 200):
        x = normal(5, rows, 1024, kind=dt.bfloat16)
        np.testing.assert_array_equal(made(x), own(x))


@on_gpu
def test_a_model_is_converted_and_read_back(session: Session, tmp_path: Path) -> None:
    """`fd quantize` on the GPU, then generation from the folder: the text made while loading."""
    from fd_core.cli.main import main

    out = tmp_path / "out"
    options = ["--method", "wfp8afp8", "--platform", "cuda"]
    assert main(["quantize", str(EMBEDDED), str(out), *options]) == 0

    def text(model: str, quantization: str = "") -> list[list[int]]:
        llm = LLM(model, platform="cuda", quantization=quantization)
        params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
        return [list(r.outputs[0].token_ids) for r in llm.generate(["The project is", "One"], params)]

    assert text(str(out)) == text(str(EMBEDDED), "wfp8afp8")
