"""One case of one op against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fd_core.api.dtype import DType, dtype
from fd_core.api.kernel import ParamKind
from fd_core.api.tensor import TensorSpec, from_numpy
from fd_core.ops.schema import Case, OpDef

Values = dict[str, Any]


def specs(definition: OpDef, inputs: Values) -> list[TensorSpec]:
    """Output specs from the shape rule."""
    described = {k: _describe(v) for k, v in inputs.items()}
    return list(definition.infer(**described))


def _describe(value: Any) -> Any:
    return TensorSpec(value.shape, dtype(value.dtype.name)) if isinstance(value, np.ndarray) else value


def garbage(spec: TensorSpec) -> np.ndarray[Any, Any]:
    """An array of bytes that no correct kernel leaves behind (NaN in every float type)."""
    out = np.empty(spec.shape, spec.dtype.numpy())
    out.reshape(-1).view(np.uint8)[...] = 1 if spec.dtype.name == "bool" else 0xFF
    return out


def arguments(definition: OpDef, inputs: Values) -> Values:
    """All parameters in schema order: copies of the inputs, garbage outputs."""
    outs = iter(specs(definition, inputs))
    values: Values = {}
    for param in definition.spec.params:
        if param.kind is ParamKind.OUT:
            values[param.name] = garbage(next(outs))
        else:
            value = inputs.get(param.name, param.default)
            values[param.name] = value.copy() if isinstance(value, np.ndarray) else value
    return values


def run_oracle(definition: OpDef, inputs: Values) -> Values:
    values = arguments(definition, inputs)
    definition.oracle(*values.values())
    return values


def run_kernel(definition: OpDef, target: Callable[..., Any], inputs: Values) -> Values:
    """Run `target` on host tensors over copies of the inputs."""
    values = arguments(definition, inputs)
    target(*(from_numpy(v) if isinstance(v, np.ndarray) else v for v in values.values()))
    return values


def assert_close(definition: OpDef, name: str, got: Any, want: Any) -> None:
    """Within the op's tolerance for this element type; NaN and infinities must coincide."""
    rtol, atol = definition.tolerance.of(dtype(want.dtype.name))
    label = f"{definition.name}.{name}"
    if rtol == atol == 0.0:
        same = got.view(np.uint8) == want.view(np.uint8) if got.size else np.True_
        if not np.all(same) and not np.array_equal(got, want, equal_nan=want.dtype.kind in "fV"):
            np.testing.assert_array_equal(_wide(got), _wide(want), err_msg=label)
        return
    np.testing.assert_allclose(_wide(got), _wide(want), rtol=rtol, atol=atol, err_msg=label)


def _wide(array: Any) -> Any:
    return array.astype(np.float64) if array.dtype.kind in "fV" else array


def check_case(
    definition: OpDef, case: Case, kind: DType, target: Callable[..., Any], seed: int = 0
) -> None:
    """Outputs and in-place parameters agree with the oracle; plain inputs are left untouched."""
    inputs = case.args(np.random.default_rng(seed), kind.numpy())
    want = run_oracle(definition, inputs)
    got = run_kernel(definition, target, inputs)
    for param in definition.spec.params:
        name = param.name
        if not isinstance(want[name], np.ndarray):
            continue
        if param.kind is ParamKind.IN:
            assert got[name].tobytes() == inputs[name].tobytes(), f"{definition.name}.{name} was changed"
        else:
            assert_close(definition, name, got[name], want[name])
