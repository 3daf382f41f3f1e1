"""Step 3 of loading: ask a plug-in for its devices in a process that may crash or hang.

`python -m fd_core.host.probe NAME` imports the plug-in's module, calls `Platform.probe()` on each of its
platforms and writes the result as JSON to standard output; whatever else is printed goes to
standard error.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.host.find import Found
from fd_core.host.jsonable import Json, from_device, from_verdict, to_verdict

TAIL = 300  # characters of standard error that a report quotes


@dataclass(frozen=True, slots=True)
class Probed:
    """One platform's answer. `devices` are the facts of `DeviceInfo` as JSON."""

    name: str
    device_type: str
    priority: int
    devices: tuple[Json, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """`verdict` is about the plug-in as a whole; each platform has its own besides."""

    platforms: tuple[Probed, ...] = ()
    verdict: Verdict = YES

    @property
    def usable(self) -> bool:
        return self.verdict.ok and any(p.verdict.ok for p in self.platforms)

    def json(self) -> Json:
        rows = [
            {**{k: getattr(p, k) for k in ("name", "device_type", "priority", "devices")}}
            | {"reasons": from_verdict(p.verdict)}
            for p in self.platforms
        ]
        return {"platforms": rows, "reasons": from_verdict(self.verdict)}


def from_json(data: Json) -> ProbeResult:
    """The inverse of `ProbeResult.json`; KeyError, TypeError or ValueError for anything else."""
    rows = tuple(
        Probed(
            r["name"], r["device_type"], int(r["priority"]), tuple(r["devices"]), to_verdict(r["reasons"])
        )
        for r in data["platforms"]
    )
    return ProbeResult(rows, to_verdict(data["reasons"]))


# -- the parent ------------------------------------------------------------------------------------


def probe_in_subprocess(found: Found, timeout: float) -> ProbeResult:
    """Never raises on account of the plug-in: a crash, a hang or an exception becomes a reason."""
    command = [sys.executable, "-m", "fd_core.host.probe", found.name]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _end(process)
        return _timed_out(found, timeout)
    return _answer(found, process.returncode, out, err)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the probe and whatever it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.communicate()


def _timed_out(found: Found, timeout: float) -> ProbeResult:
    fix = f"raise FD_PROBE_TIMEOUT, check the driver, or set FD_PLUGINS_BLOCK={found.name}"
    have = "no answer; it was ended"
    want = f"an answer within {timeout:g} s"
    return _failed(ReasonCode.PROBE_TIMEOUT, found, want, have, fix)


def _answer(found: Found, status: int, out: bytes, err: bytes) -> ProbeResult:
    if status == 0:
        try:
            return from_json(json.loads(out))
        except (ValueError, KeyError, TypeError) as error:
            have = f"{type(error).__name__}: {error} in {out[:80]!r}" if out else "no answer, exit status 0"
            return _failed(ReasonCode.PROBE_ERROR, found, "a JSON answer", have, _report_to(found))
    have = _exit_text(status)
    tail = err.decode("utf-8", "replace").strip()[-TAIL:]
    return _failed(
        ReasonCode.PROBE_CRASH, found, "to survive its probe", f"{have}: {tail}" if tail else have,
        f"check the driver, reinstall {found.distribution}, or set FD_PLUGINS_BLOCK={found.name}",
    )  # fmt: skip


def _exit_text(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _report_to(found: Found) -> str:
    return f"report it to the authors of {found.distribution}"


def _failed(code: ReasonCode, found: Found, want: str, have: str, fix: str) -> ProbeResult:
    return ProbeResult(verdict=Verdict.no(code, str(found), want, have, fix))


# -- the child -------------------------------------------------------------------------------------


def probe_here(found: Found) -> ProbeResult:
    """Import the plug-in into this process, ask its platforms, and load its binary if one is usable."""
    from fd_core.host.register import ask, check_platforms, load, new_manager

    manager = new_manager()
    module, verdict, _ = load(manager, found)
    if module is None:
        return ProbeResult(verdict=verdict)
    classes, verdict = ask(manager, found, module, "fd_platforms")
    verdict &= check_platforms(found, classes or [])
    if not verdict.ok:
        return ProbeResult(verdict=verdict)
    result = ProbeResult(tuple(_probe_platform(found, cls) for cls in classes or []))
    if result.usable:  # a binary that crashes while it is loaded must do so here
        ask(manager, found, module, "fd_stamp")
    return result


def _probe_platform(found: Found, cls: Any) -> Probed:
    from fd_core.host.register import FAILURES, describe

    devices: Iterable[Any] = ()
    try:
        report = cls.probe()
        devices, verdict = report.devices, report.verdict
    except FAILURES as error:
        subject = f"platform {cls.name!r} of {found}"
        verdict = Verdict.no(ReasonCode.PROBE_ERROR, subject, "devices", describe(error), _report_to(found))
    rows = tuple(from_device(info) for info in devices)
    if not rows and verdict.ok:
        fix = f"attach a device, or uninstall {found.distribution}"
        verdict = Verdict.no(ReasonCode.NO_DEVICE, f"platform {cls.name!r}", "at least one device", 0, fix)
    return Probed(cls.name, cls.device_type, cls.priority, rows, verdict)


def main(name: str) -> int:
    from fd_core.host.find import installed

    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a plug-in that prints must not spoil the answer
    found = next(one for one in installed() if one.name == name)
    json.dump(probe_here(found).json(), answer)
    answer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
