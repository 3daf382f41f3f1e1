"""The kit catches a planted defect of every class that it claims to catch, and passes sound kernels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fd_core.api.device import HOST, DeviceInfo
from fd_core.api.dtype import float32
from fd_core.api.host_platform import HostPlatform
from fd_core.api.kernel import Kernel
from fd_core.api.tensor import Tensor
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.cli import main
from fd_core.host.freeze import freeze
from fd_core.host.ledger import Ledger
from fd_core.host.oracle import oracle_target
from fd_core.host.reference import ReferencePlatform
from fd_core.host.session import Session
from fd_core.ops.catalogue import find
from fd_core.testkit.faults import parse
from fd_core.testkit.kit import CHECKS, Finding, examine
from fd_core.testkit.simulated import SimulatedPlatform
from fd_core.testkit.simulated import kernel as queued

OPS = {"rms_norm": find("rms_norm")}
FLOATS = ("float32", "bfloat16", "float16")
Body = Callable[[Any, Any, float, Any], None]


class Capturing(ReferencePlatform):
    """Records and replays, rightly or with the results of the capture."""

    def __init__(self, stale: bool = False) -> None:
        self.stale = stale

    def capture(self, fn: Callable[[], None]) -> Any:
        fn()
        return SimpleNamespace(replay=(lambda: None) if self.stale else fn)


_platforms: list[HostPlatform] = []


def session(
    body: Callable[..., None], supports: Callable[..., Verdict] | None = None, stale: bool = False
) -> Session:
    """A host platform whose rms_norm is `body`, called with tensors."""
    platform: HostPlatform = Capturing(stale)
    _platforms.append(platform)
    info = DeviceInfo(HOST, "planted", "planted", 0, 1 << 30)
    table = freeze(OPS, [Kernel("rms_norm", "planted", body, supports=supports)], info, policy="allow")
    return Session(platform, info, table, [], {}, Ledger(table, {}))


def validated(body: Body) -> Callable[..., None]:
    """A kernel that checks its arguments as ours do, then computes `body` on arrays."""

    def kernel(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        if out.dtype != x.dtype or weight.dtype not in (x.dtype, float32) or x.dtype.name not in FLOATS:
            raise TypeError(f"rms_norm: dtypes {x.dtype}, {weight.dtype}, {out.dtype}")
        if x.ndim != 2 or weight.shape != x.shape[1:] or out.shape != x.shape:
            raise ValueError(f"rms_norm: shapes {x.shape}, {weight.shape}, {out.shape}")
        body(x.numpy(), weight.numpy(), eps, out.numpy())

    return kernel


def sound(x: Any, weight: Any, eps: float, out: Any) -> None:
    OPS["rms_norm"].oracle(x, weight, eps, out)


def failed(kernel: Callable[..., None], dtypes: list[str] | None = None) -> set[str]:
    findings = list(examine(session(kernel), dtypes=dtypes or ["float32"]))
    assert {finding.check for finding in findings} == set(CHECKS)
    return {finding.check for finding in findings if finding.status == "fail"}


def test_sound_kernel_passes() -> None:
    assert failed(validated(sound), list(FLOATS)) == set()


def tail_left_out(x: Any, weight: Any, eps: float, out: Any) -> None:
    sound(x, weight, eps, out)
    out[..., 16 * (x.shape[-1] // 16) :] = 0


def uninitialised(x: Any, weight: Any, eps: float, out: Any) -> None:
    keep = out[:, -1:].copy()
    sound(x, weight, eps, out)
    out[:, -1:] = keep


def rows_coupled(x: Any, weight: Any, eps: float, out: Any) -> None:
    sound(x, weight, eps, out)
    out *= np.float32(1 + 1e-7 * len(x))


def writes_its_input(x: Any, weight: Any, eps: float, out: Any) -> None:
    sound(x, weight, eps, out)
    if weight.size:
        weight[0] += 1


_calls = itertools.count()


def nondeterministic(x: Any, weight: Any, eps: float, out: Any) -> None:
    sound(x, weight, eps, out)
    out *= np.float32(1 + 1.2e-7 * (next(_calls) % 2))


def no_checks(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """Reads every tensor as float32 whatever it is."""
    count = x.numel
    flat, scale = (t.numpy().reshape(-1).view(np.float32) for t in (x, weight))
    result = np.resize(flat, count) * np.resize(scale, count)
    out.numpy().reshape(-1).view(np.float32)[:count] = result[: out.numel]


def first_row_unasked(x: Any, weight: Any, eps: float, out: Any) -> None:
    sound(x, weight, eps, out)
    if not len(x):
        raise ZeroDivisionError("no first row")


def late_check(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    out.numpy()[...] = 0
    validated(sound)(x, weight, eps, out)


def ignores_strides(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    packed = Tensor(x.ptr, x.shape, x.dtype, x.storage)
    validated(sound)(packed, weight, eps, out)


def unaware_of_devices(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """Follows every address as if it were the host's."""
    tensors = [Tensor(t.ptr, t.shape, t.dtype, replace(t.storage, device=HOST)) for t in (x, weight, out)]
    validated(sound)(tensors[0], tensors[1], eps, tensors[2])


def allocating(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    _platforms[-1].empty(x.spec)
    validated(sound)(x, weight, eps, out)


def one_short(x: Any, weight: Any, eps: float, out: Any) -> None:
    """The sum of squares ends one element early."""
    sound(x, weight, eps, out)
    if x.size:
        full, short = ((x[:, :n].astype(np.float32) ** 2).sum(1, keepdims=True) for n in (None, -1))
        out *= np.sqrt((full / x.shape[1] + eps) / (short / x.shape[1] + eps))


def first_row_coupled(x: Any, weight: Any, eps: float, out: Any) -> None:
    sound(x, weight, eps, out)
    out[:1] *= np.float32(1 + 1e-6 * (len(x) > 1))


def without_shape_checks(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """Right types are asked for, and then every tensor has the shape it ought to have."""
    if x.dtype != float32 or weight.dtype != float32 or out.dtype != float32:
        raise TypeError(f"rms_norm: dtypes {x.dtype}, {weight.dtype}, {out.dtype}")
    width = x.shape[-1] if x.ndim else 1
    flat = [t.numpy().reshape(-1) for t in (x, weight, out)]
    rows = flat[0].size // width if width else 0
    result = np.empty((rows, width), np.float32)
    sound(flat[0][: rows * width].reshape(rows, width), np.resize(flat[1], width), eps, result)
    flat[2][...] = np.resize(result.reshape(-1), flat[2].size)


def ignores_alignment(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """Loads vectors of 16 bytes from where the first one would begin."""
    validated(sound)(Tensor(x.ptr & ~15, x.shape, x.dtype, x.storage), weight, eps, out)


def beyond(tensor: Tensor) -> Any:
    """The element after the last one, where the storage has one: an array of size 1, else 0."""
    end = tensor.ptr + tensor.nbytes
    room = end + tensor.dtype.itemsize <= tensor.storage.ptr + tensor.storage.nbytes
    return Tensor(end if room else tensor.ptr, (int(room),), tensor.dtype, tensor.storage).numpy()


def writes_past_the_end(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    validated(sound)(x, weight, eps, out)
    beyond(out)[...] = 0


def reads_past_the_end(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    validated(sound)(x, weight, eps, out)
    for after in beyond(x):
        out.numpy()[-1:] += 0 * after


#: Every class of defect that the kit claims to catch, and the check that must.
PLANTED: dict[str, tuple[Callable[..., None], str]] = {
    "a tail left out": (validated(tail_left_out), "agrees_with_oracle"),
    "off by one in a tail": (validated(one_short), "agrees_with_oracle"),
    "an output not initialised": (validated(uninitialised), "agrees_with_oracle"),
    "an input written": (validated(writes_its_input), "agrees_with_oracle"),
    "rows coupled": (validated(rows_coupled), "rows_are_independent"),
    "the first row coupled": (validated(first_row_coupled), "rows_are_independent"),
    "equal calls that differ": (validated(nondeterministic), "repeats"),
    "no rows": (validated(first_row_unasked), "no_rows"),
    "no check of types": (no_checks, "wrong_dtypes"),
    "no check of shapes": (without_shape_checks, "wrong_shapes"),
    "a check after the first write": (late_check, "wrong_shapes"),
    "strides taken for granted": (ignores_strides, "strided_tensors"),
    "alignment taken for granted": (ignores_alignment, "misaligned_tensors"),
    "no check of devices": (unaware_of_devices, "wrong_devices"),
    "an allocation": (allocating, "does_not_allocate"),
    "a write past the end": (writes_past_the_end, "stays_inside"),
    "a read past the end": (reads_past_the_end, "stays_inside"),
}
#: The same on the simulated device, where work is done late: fault on demand, and the check.
FAULTS: dict[str, tuple[str, str]] = {
    "a stream that nobody waits for": ("stream:rms_norm", "agrees_with_oracle"),
    "a NaN": ("nan:rms_norm", "agrees_with_oracle"),
    "a sum in changing order": ("random:rms_norm", "repeats"),
    "an error that surfaces at synchronize": ("async:2", "agrees_with_oracle"),
    "a device that goes": ("lost:2", "agrees_with_oracle"),
}
#: Checks whose defects lie in a record or a graph: planted by the tests below.
ELSEWHERE = {"replays", "predicate_agrees"}


@pytest.mark.parametrize(("kernel", "check"), PLANTED.values(), ids=PLANTED)
def test_planted_defect_is_caught(kernel: Callable[..., None], check: str) -> None:
    assert check in failed(kernel)


@pytest.mark.parametrize(("fault", "check"), FAULTS.values(), ids=FAULTS)
def test_fault_of_the_device_is_caught(fault: str, check: str) -> None:
    platform = SimulatedPlatform(parse((fault,)))
    table = freeze(OPS, [queued(OPS["rms_norm"])], platform.open(0), policy="error")
    opened = Session(platform, platform.open(0), table, [], {}, Ledger(table, {}))
    assert "fail" in {f.status for f in examine(opened, dtypes=["float32"], only=[check])}


def test_every_check_has_a_defect_that_it_catches() -> None:
    assert {check for _, check in (*PLANTED.values(), *FAULTS.values())} | ELSEWHERE == set(CHECKS)


def checked(name: str, **how: Any) -> set[str]:
    body = how.pop("body", validated(sound))
    findings = examine(session(body, **how), dtypes=["float32"], only=[name])
    return {finding.status for finding in findings}


def test_replay_with_the_captured_results_is_caught() -> None:
    assert checked("replays") <= {"pass", "skip"}
    assert "fail" in checked("replays", stale=True)


def test_predicate_that_promises_too_much_is_caught() -> None:
    def only_even(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
        if x.shape[-1] % 2:
            raise ValueError("rms_norm.x: want an even width")
        validated(sound)(x, weight, eps, out)

    def even(x: Tensor, *_: Any) -> Verdict:
        odd = x.shape[-1] % 2
        return Verdict.no(ReasonCode.SHAPE, "rms_norm.x", "an even width", x.shape[-1]) if odd else YES

    assert "fail" not in checked("predicate_agrees", body=only_even, supports=even)
    assert "fail" in checked("predicate_agrees", body=only_even, supports=lambda *_: YES)


def test_predicate_must_be_pure() -> None:
    answers = itertools.cycle([YES, Verdict.no(ReasonCode.SHAPE, "rms_norm", "luck", "none")])
    assert "fail" in checked("predicate_agrees", supports=lambda *_: next(answers))


def test_error_of_the_device_surfaces_at_synchronize() -> None:
    opened = session(validated(sound))

    def lost() -> None:
        raise RuntimeError("device lost")

    opened.platform.synchronize = lost  # type: ignore[method-assign]
    findings = list(examine(opened, dtypes=["float32"], only=["agrees_with_oracle"]))
    assert {(f.status, f.detail) for f in findings} == {("fail", "RuntimeError: device lost")}


def test_kernel_that_fails_is_a_finding_not_an_error() -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("planted")

    findings = list(examine(session(broken), dtypes=["float32"], only=["agrees_with_oracle"]))
    assert {finding.status for finding in findings} == {"fail"}
    assert findings[0] == Finding(
        "rms_norm", "0x64", "float32", "agrees_with_oracle", "fail", "ZeroDivisionError: planted"
    )


class TestCommand:
    def test_report(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "report.json"
        words = ["conformance", "--platform", "reference", "--op", "rms_norm", "--json", str(file)]
        assert main.main([*words, "--check", "agrees_with_oracle"]) == 0
        data = json.loads(file.read_text())
        assert data["platform"] == "reference"
        assert data["providers"]["rms_norm"] == "oracle"
        assert {finding["status"] for finding in data["findings"]} == {"pass"}
        assert "rms_norm" in capsys.readouterr().out

    def test_unknown_names(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main.main(["conformance", "--op", "rms_nrm"]) == 1
        assert "no op is called rms_nrm" in capsys.readouterr().err


def test_checks_leave_their_own_inputs_alone() -> None:
    """On host memory a kernel that writes in place must not spoil what the oracle is given."""
    ops = {"apply_logit_bias": find("apply_logit_bias")}
    info = DeviceInfo(HOST, "oracle", "oracle", 0, 1 << 30)
    target = oracle_target(ops["apply_logit_bias"])
    table = freeze(ops, [Kernel("apply_logit_bias", "planted", target)], info, policy="error")
    opened = Session(ReferencePlatform(), info, table, [], {}, Ledger(table, {}))
    findings = examine(opened, dtypes=["float32"], only=["wrong_shapes", "wrong_dtypes", "strided_tensors"])
    assert [f for f in findings if f.status == "fail" and "not the oracle's" in f.detail] == []
