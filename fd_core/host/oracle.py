"""Any op on any device through its NumPy oracle: correct, slow, and counted as a fallback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fd_core.api.kernel import Kernel, Numerics, ParamKind
from fd_core.api.tensor import Tensor
from fd_core.ops.schema import OpDef

#: Provider name of the oracles.
ORACLE = "oracle"


def oracle_kernel(definition: OpDef) -> Kernel:
    """The kernel record of the oracle: lowest priority, allocates, exact by definition."""
    return Kernel(
        op=definition.name,
        provider=ORACLE,
        target=oracle_target(definition),
        priority=-1000,
        numerics=Numerics.BITWISE,
        allocates=True,
    )


def oracle_target(definition: OpDef) -> Callable[..., None]:
    """Run the oracle on host memory in place; device tensors go through host copies."""
    writes = [p.kind in (ParamKind.OUT, ParamKind.INOUT) for p in definition.spec.params]

    def call(*args: Any) -> None:
        arrays = [_to_host(a) for a in args]
        definition.oracle(*arrays)
        for arg, array, written in zip(args, arrays, writes, strict=True):
            if written and isinstance(arg, Tensor) and not arg.storage.on_host:
                _write_back(arg, array)

    return call


def _to_host(arg: Any) -> Any:
    if not isinstance(arg, Tensor):
        return arg
    if arg.storage.on_host:
        return arg.numpy()
    if arg.storage.platform is None:
        raise ValueError(f"oracle: want a tensor of an open device, have one on {arg.device}")
    return arg.storage.platform.to_host(arg)


def _write_back(tensor: Tensor, array: Any) -> None:
    from fd_core.api.tensor import from_numpy

    tensor.copy_from(from_numpy(array))
