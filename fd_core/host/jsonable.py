"""Verdicts and devices as plain JSON values, for the probe's pipe, its cache and `--json` output."""

from __future__ import annotations

from typing import Any

from fd_core.api.device import DeviceInfo
from fd_core.api.verdict import Reason, ReasonCode, Verdict

Json = dict[str, Any]


def from_verdict(verdict: Verdict) -> list[Json]:
    return [from_reason(reason) for reason in verdict.reasons]


def from_reason(reason: Reason) -> Json:
    fields = ("subject", "want", "have", "fix")
    return {"code": reason.code.value, **{name: getattr(reason, name) for name in fields}}


def to_verdict(rows: list[Json]) -> Verdict:
    """The inverse; KeyError or ValueError for rows that are none."""
    return Verdict(
        tuple(Reason(ReasonCode(r["code"]), r["subject"], r["want"], r["have"], r["fix"]) for r in rows)
    )


def from_device(info: DeviceInfo) -> Json:
    return {
        "device": str(info.device),
        "name": info.name,
        "arch": info.arch,
        "memory": info.memory,
        "driver": info.driver,
        "units": info.units,
        "features": sorted(info.features),
        "activation_dtype": str(info.activation_dtype or ""),
        "extra": dict(info.extra),
    }
