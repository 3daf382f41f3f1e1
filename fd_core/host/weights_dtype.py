"""Whether a device's kernels compute in a checkpoint's element type: asked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import FLOATS, DType
from fd_core.api.kernel import Kernel
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.host.dispatch import Dispatch, GuardedOp
from fd_core.host.oracle import ORACLE

#: Ops that every model calls on its activations, with the parameter that has their type.
ASKED = (("embedding", "out"), ("rms_norm", "x"), ("linear", "x"))


def check_weights_dtype(ops: Dispatch, device: DeviceInfo, dtype: DType) -> Verdict:
    """A reason for the first of `ASKED` whose kernels all refuse `dtype`; it names the types to ask for.

    Nothing is refused that the oracle may serve without a word (fallback policy `allow`).
    """
    for op, parameter in ASKED:
        allowed = _allowed(ops, device, op, parameter)
        if allowed and dtype not in allowed:
            want = " | ".join(map(str, allowed))
            fix = f"--dtype {allowed[0]}, which converts the weights while they are loaded"
            return Verdict.no(
                ReasonCode.DTYPE, f"weights of {dtype} on {device.name} ({device.arch})", want, dtype, fix
            )
    return YES


def _allowed(ops: Dispatch, device: DeviceInfo, op: str, parameter: str) -> list[DType]:
    """Types that some kernel of the device takes, narrow ones first; empty: nothing is restricted."""
    found: set[DType] = set()
    for kernel in _native(ops, device, op):
        types = kernel.requires.dtypes.get(parameter)
        if types is None:
            return []
        found |= set(types)
    return sorted(found & set(FLOATS), key=lambda one: (one.bits, one.name != "bfloat16"))


def _native(ops: Dispatch, device: DeviceInfo, op: str) -> Iterator[Kernel]:
    frozen = ops.table.get(op)
    if not isinstance(frozen, GuardedOp) or frozen.policy == "allow":
        return
    offers = [frozen.kernel, *(kernel for kernel, _ in frozen.losers)]
    for kernel in offers:
        if kernel.provider != ORACLE and kernel.requires.check_device(op, device).ok:
            yield kernel
