"""Faults that show after a plug-in was loaded: in its answers, its records, its kernels, its devices."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fd_core.api.verdict import Reason, ReasonCode
from fd_core.cli import doctor
from fd_core.host.errors import PlatformError, UnsupportedOpError
from fd_core.host.facts import open_platform
from fd_core.host.plugins import PluginHost
from fd_core.host.probe_cache import ProbeCache
from fd_core.host.session import freeze_ops
from tests.plugins import broken
from tests.plugins.broken import Fake

HOOK = """

@hookimpl
def {signature}:
    return {answer}
"""
KERNELS = "\n\nfrom fd_core.api.kernel import Kernel, Require\n"
PROBED = "return ProbeReport((DeviceInfo(HOST, 'toy', 'toy', 0, 1 << 30),))"
OPENED = 'return DeviceInfo(HOST, "toy", "toy", 0, 1 << 30)'
Install = Callable[[str], PluginHost]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A host with one plug-in of this code."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(code: str) -> PluginHost:
        monkeypatch.delitem(sys.modules, "fd_late", raising=False)
        return PluginHost([Fake("late", code).install(tmp_path)], ProbeCache(None), True, 20)

    return run


def hook(signature: str, answer: str) -> str:
    return broken.GOOD + KERNELS + HOOK.format(signature=signature, answer=answer)


def complete(reason: Reason) -> bool:
    return all((reason.subject, reason.want, reason.have, reason.fix))


ANSWERS = [
    ("fd_kernels(device)", "7", "a list", "7"),
    ("fd_kernels(device)", "['rms_norm']", "a Kernel", "'rms_norm'"),
    ("fd_quant_methods(device)", "[int]", "a QuantMethod", "<class 'int'>"),
    ("fd_attention_backends(device)", "[1]", "a AttentionBackend", "1"),
    ("fd_simulated_devices()", "[('x',)]", "a (str, DeviceInfo)", "('x',)"),
    ("fd_simulated_devices()", "[('x', 'sm_1')]", "a (str, DeviceInfo)", "('x', 'sm_1')"),
    ("fd_doctor(device)", "[('driver', True)]", "a (str, Verdict)", "('driver', True)"),
]


@pytest.mark.parametrize(("signature", "answer", "want", "have"), ANSWERS)
def test_hooks_that_answer_something_else(
    install: Install, signature: str, answer: str, want: str, have: str
) -> None:
    host = install(hook(signature, answer))
    info = host.platform_class("late")().open(0)
    for ask in (host.kernels, host.quant_methods, host.attention_backends, host.checks):
        ask(info)  # type: ignore[operator]
    host.simulated_devices()
    (reason,) = host.plugins[0].verdict.reasons
    assert (reason.code, reason.want, reason.have) == (ReasonCode.REGISTER, want, have)
    assert "fd-late 1.2.3" in reason.subject
    assert complete(reason)


@pytest.mark.parametrize(
    ("code", "have"),
    [("raise OSError('busy')", "OSError: busy"), ("return 3", "open() gave 3")],
)
def test_devices_that_do_not_open(install: Install, code: str, have: str) -> None:
    text = broken.GOOD.replace("return ProbeReport((cls().open(0),))", PROBED).replace(OPENED, code)
    host = install(text)
    assert host.plugins[0].loaded
    with pytest.raises(PlatformError, match="platform 'late' cannot be opened") as raised:
        open_platform(host.platform_class("late")(), 0, host.facts())
    (reason,) = raised.value.verdict.reasons
    assert reason.code is ReasonCode.NO_DEVICE
    assert have in reason.have
    assert complete(reason)


TARGETS = [
    ("'no_such_module_at_all:f'", "ModuleNotFoundError"),
    ("'os:no_such_function'", "has no attribute 'no_such_function'"),
    ("'os:name'", "os:name is of type str, not a function"),
    ("'os'", "has no attribute ''"),
]


@pytest.mark.parametrize(("target", "have"), TARGETS)
def test_targets_that_are_no_functions(install: Install, target: str, have: str) -> None:
    host = install(hook("fd_kernels(device)", f"[Kernel('rms_norm', 'fd-late', {target})]"))
    ops = freeze_ops(host, host.platform_class("late")().open(0), "late", "error")
    (reason,) = ops.missing["rms_norm"].reasons
    assert reason.code is ReasonCode.NOT_BUILT
    assert have in reason.have
    assert complete(reason)


@pytest.mark.parametrize(
    ("supports", "have"),
    [("lambda *a: 1 / 0", "ZeroDivisionError: division by zero"), ("lambda *a: False", "False")],
)
def test_predicates_that_give_no_verdict(install: Install, supports: str, have: str) -> None:
    host = install(
        hook("fd_kernels(device)", f"[Kernel('rms_norm', 'fd-late', print, supports={supports})]")
    )
    platform = host.platform_class("late")()
    ops = freeze_ops(host, platform.open(0), "late", "error")
    x, weight = (platform.from_host(np.ones(shape, np.float32)) for shape in ((2, 4), (4,)))
    with pytest.raises(UnsupportedOpError) as raised:
        ops.rms_norm(x, weight, 1e-6, x)
    (reason,) = raised.value.verdict.reasons
    assert (reason.code, reason.want, reason.have) == (ReasonCode.REGISTER, "a Verdict", have)
    assert complete(reason)


REMARKS = [
    ("Kernel('rms_nrm', 'fd-late', print)", "no such op; did you mean rms_norm?"),
    (
        "Kernel('rms_norm', 'fd-late', print, Require(dtypes={'weigth': ()}))",
        "dtypes of weigth: the op's parameters are x, weight, eps, out",
    ),
]


@pytest.mark.parametrize(("record", "text"), REMARKS)
def test_names_that_this_core_does_not_know(
    install: Install, record: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Perhaps of a later fd-core, so the rest is used; but said, once, in the log and by `fd doctor`."""
    host = install(hook("fd_kernels(device)", f"[{record}]"))
    info = host.platform_class("late")().open(0)
    for _ in range(2):
        assert len(host.kernels(info)) == 1
    plugin = host.plugins[0]
    assert plugin.loaded
    (remark,) = plugin.remarks
    assert text in remark
    assert caplog.text.count(text) == 1
    assert doctor.plugin_report(host, plugin)["remarks"] == [remark]
