"""Frozen dispatch: one bound target per op, chosen once when a device is opened."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fd_core.api.dtype import DType
from fd_core.api.kernel import Kernel, OpSpec, ParamKind
from fd_core.api.tensor import Tensor
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.host.errors import UnsupportedOpError

_log = logging.getLogger("fd.dispatch")
Signature = tuple[Any, ...]
Target = Callable[..., Any]


def resolve(target: str | Target) -> Target:
    """The callable behind "module:attribute"; AttributeError for anything else there."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    found: Target = getattr(importlib.import_module(module), attribute)
    if not callable(found):
        raise AttributeError(f"{target} is of type {type(found).__name__}, not a function")
    return found


class FrozenOp:
    """A bound kernel and its call counter. Arguments: the schema's, in order, outputs included.

    `losers`: the other kernels on offer with their verdicts (an ok verdict lost by priority).
    `fallbacks` counts calls served by another kernel than the device's best; `reason` is the first.
    """

    __slots__ = ("calls", "fallbacks", "kernel", "losers", "name", "reason", "target")

    def __init__(
        self,
        name: str,
        kernel: Kernel,
        target: Target,
        losers: tuple[tuple[Kernel, Verdict], ...] = (),
    ) -> None:
        self.name = name
        self.kernel = kernel
        self.target = target
        self.losers = losers
        self.calls = 0
        self.fallbacks = 0
        self.reason = YES

    def __call__(self, *args: Any) -> None:
        self.calls += 1
        self.target(*args)


class FallbackOp(FrozenOp):
    """An op the device has no kernel for, run by the oracle: every call is a fallback."""

    __slots__ = ("loud",)

    def __init__(
        self,
        name: str,
        kernel: Kernel,
        target: Target,
        losers: tuple[tuple[Kernel, Verdict], ...],
        reason: Verdict,
        loud: bool,
    ) -> None:
        super().__init__(name, kernel, target, losers)
        self.reason = reason
        self.loud = loud

    def __call__(self, *args: Any) -> None:
        if self.loud and not self.fallbacks:
            warn_fallback(self.name, self.kernel, self.reason)
        self.calls += 1
        self.fallbacks += 1
        self.target(*args)


class GuardedOp(FrozenOp):
    """A kernel that does not take every call: the choice is made once per (dtypes, shapes).

    Candidates in order; the first is `kernel`. Passing to a later one is a fallback under `policy`.
    """

    __slots__ = ("_chosen", "candidates", "device", "policy", "spec")

    def __init__(
        self,
        spec: OpSpec,
        candidates: tuple[Kernel, ...],
        target: Target,
        losers: tuple[tuple[Kernel, Verdict], ...],
        policy: str,
        device: str,
    ) -> None:
        super().__init__(spec.name, candidates[0], target, losers)
        self.spec = spec
        self.candidates = candidates
        self.policy = policy
        self.device = device
        self._chosen: dict[Signature, tuple[Target, Verdict]] = {}

    def __call__(self, *args: Any) -> None:
        key = signature(args)
        chosen = self._chosen.get(key)
        if chosen is None:
            chosen = self._chosen[key] = self._choose(args)
        target, reason = chosen
        self.calls += 1
        if reason.reasons:
            self.fallbacks += 1
        target(*args)

    def _choose(self, args: tuple[Any, ...]) -> tuple[Target, Verdict]:
        reasons = YES
        for kernel in self.candidates:
            verdict = accepts(kernel, self.spec, args)
            if verdict.ok:
                return self._take(kernel, reasons)
            reasons &= verdict
        raise_missing(self.name, self.device, reasons)

    def _take(self, kernel: Kernel, reasons: Verdict) -> tuple[Target, Verdict]:
        if kernel is self.kernel:
            return self.target, YES
        if self.policy == "error":
            raise_missing(self.name, self.device, reasons)
        if self.policy == "warn":
            warn_fallback(self.name, kernel, reasons)
        if self.reason.ok:
            self.reason = reasons
        return resolve(kernel.target), reasons


def signature(args: tuple[Any, ...]) -> Signature:
    """What `supports` may depend on: dtypes, shapes and strides of tensors, attributes as they are."""
    return tuple((a.dtype, a.shape, a.strides) if isinstance(a, Tensor) else a for a in args)


def accepts(kernel: Kernel, spec: OpSpec, args: tuple[Any, ...]) -> Verdict:
    """The one predicate of a call: dtypes from the record, then the kernel's own `supports`."""
    verdict = kernel.requires.check_dtypes(spec.name, dtypes_of(spec, args))
    if verdict.ok and kernel.supports is not None:
        verdict = _supports(kernel, kernel.supports, args)
    return verdict


def _supports(kernel: Kernel, ask: Callable[..., Any], args: tuple[Any, ...]) -> Verdict:
    """Its answer; a reason against the kernel where it fails or answers something else."""
    try:
        answer = ask(*args)
        have = repr(answer)
    except Exception as error:
        answer, have = None, f"{type(error).__name__}: {error}"
    if isinstance(answer, Verdict):
        return answer
    fix = f"report it to the authors of {kernel.provider}"
    subject = f"supports() of {kernel.provider} for {kernel.op}"
    return Verdict.no(ReasonCode.REGISTER, subject, "a Verdict", have, fix)


def dtypes_of(spec: OpSpec, args: tuple[Any, ...]) -> dict[str, DType | None]:
    """Element types of the tensor arguments by parameter name."""
    pairs = zip(spec.params, args, strict=False)
    return {p.name: getattr(a, "dtype", None) for p, a in pairs if p.kind is not ParamKind.ATTR}


def warn_fallback(op: str, kernel: Kernel, reason: Verdict) -> None:
    _log.warning("op %s runs on %s instead of the device's kernel: %s", op, kernel.provider, reason)


@dataclass(frozen=True)
class Dispatch:
    """The ops of one opened device; `dispatch.rms_norm(x, weight, eps, out)`.

    `missing` holds, for every op without a kernel, the reasons.
    """

    device: str
    table: Mapping[str, FrozenOp]
    missing: Mapping[str, Verdict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.__dict__.update(self.table)

    def __getattr__(self, name: str) -> FrozenOp:
        if name.startswith("__"):
            raise AttributeError(name)
        raise_missing(name, self.device, self.missing.get(name, YES))

    def __contains__(self, name: str) -> bool:
        return name in self.table

    def provides(self, name: str) -> bool:
        """Whether the device has a kernel for `name`: calls are no fallback to the oracle."""
        return name in self.table and not isinstance(self.table[name], FallbackOp)


def raise_missing(name: str, device: str, verdict: Verdict) -> NoReturn:
    """UnsupportedOpError with the reasons (none: no op is called `name`)."""
    why = (
        f"op {name!r} cannot run on {device}: {verdict}" if verdict.reasons else f"no op is called {name!r}"
    )
    raise UnsupportedOpError(why, verdict)
