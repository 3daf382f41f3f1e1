"""Resolve kernels for one device and freeze the dispatch table (start-up only)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fd_core.api.device import DeviceInfo
from fd_core.api.kernel import Kernel
from fd_core.api.verdict import YES, NotBuiltError, ReasonCode, Verdict
from fd_core.host.dispatch import Dispatch, FallbackOp, FrozenOp, GuardedOp, resolve
from fd_core.host.errors import PlatformError
from fd_core.host.oracle import ORACLE, oracle_kernel
from fd_core.ops.schema import OpDef

Offer = tuple[Kernel, Verdict]
#: What resolving a target raises when this build lacks the kernel.
BIND_ERRORS = (ImportError, AttributeError, RuntimeError, OSError)


def offers(op: str, kernels: Iterable[Kernel], device: DeviceInfo) -> list[Offer]:
    """Kernels of one op with their device verdicts, best first: eligible ones, then by priority."""
    rows = [(k, k.requires.check_device(op, device)) for k in kernels]
    return sorted(rows, key=lambda row: (not row[1].ok, -row[0].priority, row[0].provider))


def freeze(
    ops: Mapping[str, OpDef],
    kernels: Iterable[Kernel],
    device: DeviceInfo,
    *,
    policy: str = "warn",
    oracle_is_native: bool = False,
    prefer: Mapping[str, str] | None = None,
) -> Dispatch:
    """The dispatch table. `policy` (error | warn | allow) rules passing to a lower candidate.

    `oracle_is_native`: the oracle is this platform's own provider, not a fallback. `prefer` names a
    provider per op, which then beats every priority.
    """
    by_op: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        by_op[kernel.op].append(kernel)
    table: dict[str, FrozenOp] = {}
    missing: dict[str, Verdict] = {}
    for name, definition in ops.items():
        rows = offers(name, by_op[name], device)
        wanted = (prefer or {}).get(name)
        if oracle_is_native or wanted == ORACLE:
            rows.append((oracle_kernel(definition), YES))
        rows = _preferred(name, rows, wanted)
        frozen = _freeze_op(definition, rows, device, policy)
        if isinstance(frozen, Verdict):
            missing[name] = frozen
        else:
            table[name] = frozen
    return Dispatch(str(device.device), table, missing)


def _preferred(op: str, rows: list[Offer], provider: str | None) -> list[Offer]:
    """The user's provider first. PlatformError if it has no kernel of this op."""
    if provider is None:
        return rows
    providers = [kernel.provider for kernel, _ in rows]
    if provider not in providers:
        want = f"a provider of {op} (oracle, {', '.join(providers)})"
        verdict = Verdict.no(ReasonCode.POLICY, "FD_KERNELS", want, repr(provider), "name another one")
        raise PlatformError(str(verdict), verdict)
    return sorted(rows, key=lambda row: row[0].provider != provider)


def _freeze_op(definition: OpDef, rows: list[Offer], device: DeviceInfo, policy: str) -> FrozenOp | Verdict:
    rows, bound = _bound(definition.name, rows)
    usable = [kernel for kernel, verdict in rows if verdict.ok]
    if bound is None:
        return _without_kernel(definition, rows, device, policy)
    best = usable[0]
    losers = tuple(row for row in rows if row[0] is not best)
    if takes_everything(best, definition):
        return FrozenOp(definition.name, best, bound, losers)
    if best.provider != ORACLE:
        usable.append(oracle_kernel(definition))
    return GuardedOp(definition.spec, tuple(usable), bound, losers, policy, str(device.device))


def _bound(op: str, rows: list[Offer]) -> tuple[list[Offer], Callable[..., Any] | None]:
    """The first eligible kernel's callable; a kernel that this build lacks gets its verdict instead."""
    seen: list[Offer] = []
    for position, (kernel, verdict) in enumerate(rows):
        if not verdict.ok:
            break
        try:
            return seen + rows[position:], resolve(kernel.target)
        except BIND_ERRORS as error:
            seen.append((kernel, not_built(op, kernel, error)))
    return seen + rows[len(seen) :], None


def not_built(op: str, kernel: Kernel, error: Exception) -> Verdict:
    """The plug-in's own reasons, if it gives some; else what went wrong when its target was looked up."""
    if isinstance(error, NotBuiltError):
        return error.verdict
    fix = f"install {kernel.provider} again, or report it to its authors"
    have = f"{type(error).__name__}: {error}"
    return Verdict.no(ReasonCode.NOT_BUILT, f"{op} of {kernel.provider}", kernel.target, have, fix)


def no_kernel(op: str, device: DeviceInfo) -> Verdict:
    """No plug-in has a record of this op for the device."""
    fix = "FD_FALLBACK=warn runs it on the NumPy oracle"
    return Verdict.no(ReasonCode.NO_KERNEL, op, f"a kernel for {device.name}", "none", fix)


def _without_kernel(
    definition: OpDef, rows: list[Offer], device: DeviceInfo, policy: str
) -> FrozenOp | Verdict:
    name = definition.name
    reason = Verdict.all(verdict for _, verdict in rows)
    if not rows:
        reason = no_kernel(name, device)
    if policy == "error":
        return reason
    oracle = oracle_kernel(definition)
    return FallbackOp(name, oracle, resolve(oracle.target), tuple(rows), reason, policy == "warn")


def takes_everything(kernel: Kernel, definition: OpDef) -> bool:
    """Whether calls need no predicate: no `supports`, and no dtype of the op's contract left out.

    A parameter whose allowed types share none with the types the op's cases sweep has one fixed type
    by contract (ids, offsets): the kernel refuses others itself, before it touches an output.
    """
    swept = {dtype for case in definition.cases for dtype in case.dtypes}
    listed = (set(allowed) for allowed in kernel.requires.dtypes.values())
    return kernel.supports is None and all(swept <= types or not swept & types for types in listed)
