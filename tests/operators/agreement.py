"""Assertions on one op: kernel equals oracle, rows do not influence each other, bad input is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from providers import run, same, target

from fd_core.api.dtype import FLOATS
from fd_core.api.kernel import ParamKind
from fd_core.api.tensor import from_numpy
from fd_core.ops.catalogue import find
from fd_core.testkit.check import arguments, assert_close

TYPES = tuple(dtype.numpy() for dtype in FLOATS)


def written(name: str) -> list[str]:
    """Parameters that the op changes."""
    return [p.name for p in find(name).spec.params if p.kind in (ParamKind.OUT, ParamKind.INOUT)]


def assert_agrees(name: str, **inputs: Any) -> dict[str, Any]:
    """The compiled kernel's results, within the op's tolerance of the oracle's."""
    got, want = run("fd-cpu", name, **inputs), run("oracle", name, **inputs)
    for parameter in written(name):
        if want[parameter] is not None:
            assert_close(find(name), parameter, got[parameter], want[parameter])
    return got


def assert_rows_alone(provider: str, name: str, **inputs: Any) -> None:
    """Every row computed alone has the bits it has in the batch."""
    rows = find(name).rows
    batch = run(provider, name, **inputs)
    for r in range(len(inputs[next(p for p in rows if p in inputs)])):
        one = {k: v[r : r + 1] if k in rows else v for k, v in inputs.items()}
        alone = run(provider, name, **one)
        for parameter in set(written(name)) & set(rows):
            assert same(alone[parameter][0], batch[parameter][r]), (name, parameter, r)


def assert_refused(provider: str, name: str, error: type[Exception], match: str, **inputs: Any) -> None:
    """`error` whose message matches, and not one byte of any argument changed."""
    values = arguments(find(name), {k: v for k, v in inputs.items() if k != "out"})
    values.update({k: v for k, v in inputs.items() if k == "out"})
    before = {k: v.tobytes() for k, v in values.items() if isinstance(v, np.ndarray)}
    call = [from_numpy(v) if isinstance(v, np.ndarray) else v for v in values.values()]
    with pytest.raises(error, match=match):
        target(provider, name)(*call)
    assert all(values[k].tobytes() == v for k, v in before.items())
