"""One type for every decision: a verdict with coded reasons, never a bare bool and a log line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class ReasonCode(str, Enum):
    """Stable identifiers of why something cannot be used. Values are part of the plug-in API."""

    API_TOO_OLD = "API_TOO_OLD"
    API_TOO_NEW = "API_TOO_NEW"
    FFI = "FFI"
    ABI = "ABI"
    OS = "OS"
    MANIFEST = "MANIFEST"
    IMPORT = "IMPORT"
    REGISTER = "REGISTER"
    DISABLED = "DISABLED"
    NOT_INSTALLED = "NOT_INSTALLED"
    NOT_BUILT = "NOT_BUILT"
    PROBE_CRASH = "PROBE_CRASH"
    PROBE_TIMEOUT = "PROBE_TIMEOUT"
    PROBE_ERROR = "PROBE_ERROR"
    NO_DEVICE = "NO_DEVICE"
    DRIVER = "DRIVER"
    DEVICE_BUSY = "DEVICE_BUSY"
    ARCH = "ARCH"
    DTYPE = "DTYPE"
    SHAPE = "SHAPE"
    LAYOUT = "LAYOUT"
    HEAD_DIM = "HEAD_DIM"
    FEATURE = "FEATURE"
    MEMORY = "MEMORY"
    NO_KERNEL = "NO_KERNEL"
    POLICY = "POLICY"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why not: `subject` wanted `want`, found `have`; `fix` says what to do."""

    code: ReasonCode
    subject: str
    want: str
    have: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"[{self.code.value}] {self.subject}: want {self.want}, have {self.have}"
        return f"{text}; fix: {self.fix}" if self.fix else text


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision. `ok` means that there is no reason against."""

    reasons: tuple[Reason, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.reasons

    def __and__(self, other: Verdict) -> Verdict:
        return Verdict(self.reasons + other.reasons)

    def __str__(self) -> str:
        return "ok" if self.ok else "; ".join(map(str, self.reasons))

    @classmethod
    def no(cls, code: ReasonCode, subject: str, want: object, have: object, fix: str = "") -> Verdict:
        return cls((Reason(code, subject, str(want), str(have), fix),))

    @classmethod
    def all(cls, verdicts: Iterable[Verdict]) -> Verdict:
        return cls(tuple(reason for verdict in verdicts for reason in verdict.reasons))


YES = Verdict()


class NotBuiltError(AttributeError):
    """Raised where a kernel's target is looked up: this build lacks it, for the reasons of `verdict`,
    which reports then give word for word. Any other error there counts as a fault of the build."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(str(verdict))
        self.verdict = verdict
