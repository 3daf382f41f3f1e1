"""fd/math.h, compiled for every level this machine runs: accuracy, ends of the range, both widths."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ladder = pytest.importorskip("fd_cpu.ladder", reason="fd-cpu is not installed")
INCLUDE = Path(__file__).parents[2] / "plugins/cpu/csrc/include"
LEVELS = [level.name for level in ladder.ladder() if level.verdict(ladder.cpu_features()).ok]
COMPILER = shutil.which("c++")

SHIM = """
#include "fd/math.h"
#define APPLY(name, wide, alone)                                         \\
  extern "C" __attribute__((visibility("default"))) void name(           \\
      const float* x, float* w, float* a, int64_t n) {                   \\
    for (int64_t i = 0; i < n; i += 16) fd::store16(w + i, fd::wide(fd::load16(x + i))); \\
    for (int64_t i = 0; i < n; ++i) a[i] = fd::alone(x[i]);              \\
  }
APPLY(exp, vexp, expf_)
APPLY(tanh, vtanh, tanhf_)
APPLY(sigmoid, vsigmoid, sigmoidf_)
"""


@pytest.fixture(scope="module", params=LEVELS)
def compiled(request: Any, tmp_path_factory: Any) -> Any:
    """The functions of one level as a loaded library."""
    if COMPILER is None or not INCLUDE.exists():
        pytest.skip("needs a C++ compiler and the kernel sources")
    folder = tmp_path_factory.mktemp("math")
    (folder / "shim.cc").write_text(SHIM)
    flags = [*ladder.common_flags(), *ladder.level_flags(request.param), f"-I{INCLUDE}", "-shared"]
    subprocess.run([COMPILER, *flags, "-o", folder / "shim.so", folder / "shim.cc"], check=True)
    return ctypes.CDLL(str(folder / "shim.so"))


def inputs() -> Any:
    """Float32 bit patterns over the whole range, NaN and infinities included, and dense around zero."""
    everywhere = np.arange(0, 2**32, 16411, dtype=np.uint64).astype(np.uint32).view(np.float32)
    dense = np.linspace(-110, 95, 200_001).astype(np.float32)
    ends = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 88.72283, 88.72284, -103.97, -104.0], np.float32)
    x = np.concatenate([everywhere, dense, ends])
    return np.pad(x, (0, -len(x) % 16))


def apply(library: Any, name: str, x: Any) -> tuple[Any, Any]:
    wide, alone = np.empty_like(x), np.empty_like(x)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (x, wide, alone)]
    getattr(library, name)(*pointers, ctypes.c_int64(len(x)))
    return wide, alone


def ulps(got: Any, exact: Any) -> Any:
    """|got - exact| in units of the last place of the float32 nearest to `exact`."""
    nearest = exact.astype(np.float32)
    finite = np.isfinite(nearest)
    assert np.array_equal(got[~finite], nearest[~finite], equal_nan=True)
    unit = np.spacing(np.abs(nearest[finite])).astype(np.float64)
    return np.abs(got[finite] - exact[finite]) / unit


@pytest.mark.parametrize(("name", "most"), [("exp", 2.0), ("tanh", 3.0)])
def test_accuracy_over_the_whole_range(compiled: Any, name: str, most: float) -> None:
    x = inputs()
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        exact = getattr(np, name)(x.astype(np.float64))
        assert ulps(apply(compiled, name, x)[0], exact).max() <= most


def test_sigmoid(compiled: Any) -> None:
    """Relative to the result down to the smallest normal number; 0 where it would be subnormal."""
    x = inputs()
    x = x[~np.isnan(x)]
    x = x[: len(x) // 16 * 16].copy()
    with np.errstate(over="ignore"):
        exact = 1.0 / (1.0 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(apply(compiled, "sigmoid", x)[0], exact, rtol=4e-7, atol=1.2e-38)


@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid"])
def test_sixteen_lanes_equal_one(compiled: Any, name: str) -> None:
    wide, alone = apply(compiled, name, inputs())
    same = (wide.view(np.uint32) == alone.view(np.uint32)) | (np.isnan(wide) & np.isnan(alone))
    assert same.all()


@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid"])
def test_lanes_do_not_depend_on_their_neighbours(compiled: Any, name: str) -> None:
    x = inputs()[-16 * 512 :].copy()
    turned = np.roll(x.reshape(-1, 16), 5, axis=1).reshape(-1)
    a, b = apply(compiled, name, x)[0], apply(compiled, name, turned)[0]
    assert np.array_equal(np.roll(a.reshape(-1, 16), 5, axis=1).reshape(-1), b, equal_nan=True)
