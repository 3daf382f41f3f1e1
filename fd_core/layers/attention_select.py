"""Which attention backend serves a model: a pure function of the facts passed in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fd_core.api.attention import AttentionBackend, AttentionSpec
from fd_core.api.device import DeviceInfo
from fd_core.api.verdict import ReasonCode, Verdict
from fd_core.host.errors import UnsupportedOpError

Backend = type[AttentionBackend]
Judged = list[tuple[Backend, Verdict]]


def _verdict(backend: Backend, spec: AttentionSpec, device: DeviceInfo, wanted: str | None) -> Verdict:
    verdict = backend.supports(spec, device)
    if wanted and backend.name != wanted:
        verdict &= Verdict.no(
            ReasonCode.DISABLED,
            backend.name,
            f"the named backend {wanted}",
            backend.name,
            f"unset FD_ATTENTION_BACKEND, or name {backend.name}",
        )
    return verdict


def _report(judged: Judged, spec: AttentionSpec, device: DeviceInfo, wanted: str | None) -> str:
    asked = f"attention backend {wanted!r}" if wanted else "an attention backend"
    lines = [f"{backend.name}: {verdict}" for backend, verdict in judged] or ["none is installed"]
    fix = "" if not wanted or any(b.name == wanted for b, _ in judged) else " (no backend has this name)"
    head = f"want {asked}{fix} for {spec} on {device.device} ({device.arch}); have:"
    return "\n  ".join([head, *lines])


def select_backend(
    candidates: Iterable[Backend], spec: AttentionSpec, device: DeviceInfo, wanted: str | None
) -> tuple[Backend, Judged]:
    """The best backend without a reason against it, and every candidate with its verdict, best first.

    Higher `priority` wins, then the name's order. `wanted`: the user's choice by name (None or empty:
    the best); a named backend that cannot serve is an error, never replaced by another. Raises
    UnsupportedOpError that lists every backend with its reasons.
    """
    ordered = sorted(candidates, key=lambda backend: (-backend.priority, backend.name))
    judged = [(backend, _verdict(backend, spec, device, wanted)) for backend in ordered]
    for backend, verdict in judged:
        if verdict.ok:
            return backend, judged
    raise UnsupportedOpError(
        _report(judged, spec, device, wanted), Verdict.all(verdict for _, verdict in judged)
    )


def explained(judged: Judged) -> str:
    """Every candidate, best first, with its preference or with what is against it."""
    return "; ".join(
        f"{backend.name}: {f'preference {backend.priority}' if verdict.ok else verdict}"
        for backend, verdict in judged
    )


def select_attention(
    spec: AttentionSpec, device: DeviceInfo, candidates: Sequence[Backend], wanted: str | None = None
) -> Backend:
    """`select_backend` for callers that need the class alone."""
    return select_backend(candidates, spec, device, wanted)[0]
