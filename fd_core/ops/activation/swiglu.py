"""swiglu: silu(gate) * up."""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.dtype import FLOATS
from fd_core.api.tensor import TensorSpec
from fd_core.ops.activation.silu import TOLERANCE
from fd_core.ops.checks import check
from fd_core.ops.schema import Array, Case, In, OptIn, Out, op


def halves_case(shape: tuple[int, ...], bench: bool = False) -> Case:
    """One input `x` whose last dimension holds gate and up."""

    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        return {"x": (rng.standard_normal(shape) * 3).astype(dtype)}

    return Case(
        "x".join(map(str, shape)),
        args,
        FLOATS,
        bench,
        bytes=lambda size: 3 * size * int(np.prod(shape)) // 2,
    )


def halves_infer(x: TensorSpec) -> list[TensorSpec]:
    """The last dimension halved."""
    return [TensorSpec((*x.shape[:-1], x.shape[-1] // 2), x.dtype)]


def _case(shape: tuple[int, ...], with_y: bool, bench: bool = False) -> Case:
    def args(rng: np.random.Generator, dtype: np.dtype[Any]) -> dict[str, Any]:
        x, y = (rng.standard_normal((2, *shape)) * 3).astype(dtype)
        return {"x": x, "y": y if with_y else None}

    name = "x".join(map(str, shape)) + ("-y" if with_y else "")
    return Case(name, args, FLOATS, bench, bytes=lambda size: 3 * size * int(np.prod(shape)) // 2)


CASES = [_case(s, False) for s in ((0, 8), (1, 2), (3, 14), (17, 200), (2, 3, 40), (6,))]
CASES += [_case(s, True) for s in ((0, 8), (3, 7), (2, 3, 40))]
CASES += [_case((1, 6144), False, bench=True), _case((512, 6144), False, bench=True)]


def silu_mul(gate: Array, up: Array) -> Array:
    """silu(gate) * up in float64."""
    g, u = gate.astype(np.float64), up.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return g / (1.0 + np.exp(-g)) * u


def _infer(x: TensorSpec, y: TensorSpec | None) -> list[TensorSpec]:
    return halves_infer(x) if y is None else [x]


@op(family="activation", infer=_infer, cases=CASES, tolerance=TOLERANCE, rows=("x", "out"))
def swiglu(x: In, y: OptIn, out: Out) -> None:
    """out = silu(gate) * up, float32 inside, one rounding.

    y None: x [..., 2I] holds gate then up, out [..., I]; else gate is x, up is y (like x), out like x.
    float32 | bfloat16 | float16, contiguous, or rank 2 with strided rows. An odd last dimension with
    y None is an error. Source: Shazeer 2020; specification ops-quant-moe §9.
    """
    if y is None:
        width = x.shape[-1]
        check(width % 2 == 0, "swiglu", "x", "an even last dimension", x.shape)
        gate, up = x[..., : width // 2], x[..., width // 2 :]
    else:
        gate, up = x, y
    out[...] = silu_mul(gate, up).astype(np.float32).astype(out.dtype)
