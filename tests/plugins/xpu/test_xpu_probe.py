"""fd-xpu before any device is open: what it finds, why not, what it declares. No Paddle is imported."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("fd_xpu", reason="fd-xpu is not installed")
from fd_xpu import facts, settings, signature
from fd_xpu.facts import Facts, Paddle
from fd_xpu.kernels import arguments, kernels, stamp, table
from fd_xpu.platform import XPUPlatform
from fd_xpu.probe import devices, judge

from fd_core.api.dtype import bfloat16, float32
from fd_core.api.manifest import read_manifest
from fd_core.api.tensor import Tensor, TensorSpec, empty_host
from fd_core.api.verdict import Reason, ReasonCode
from fd_core.host.find import Found
from fd_core.host.plugins import PluginHost
from fd_core.host.probe_cache import ProbeCache
from fd_core.ops.catalogue import catalogue

ROOT = Path(__file__).parents[3]
FOUND = Found("xpu", "fd_xpu", "fd-xpu", "0.1.0")
HEALTHY = Facts(
    nodes=("/dev/xpu0", "/dev/xpu1"),
    control=True,
    driver="5.0.21.26",
    runtime="/opt/xre/so/libxpurt.so.2",
    chips=("p800", "p800"),
    paddle=Paddle("3.3.0", "5.0.21.21", "/somewhere/paddle"),
)


def machine(root: Path, *, nodes: int = 2, control: bool = True, driver: str = "5.0.21.26") -> Path:
    """A file tree as the driver makes it."""
    (root / "dev").mkdir()
    for name in [*(f"xpu{i}" for i in range(nodes)), *(["xpuctrl"] if control else [])]:
        (root / "dev" / name).touch()
    (root / "proc/kunlun").mkdir(parents=True)
    line = f"KUNLUN kernel module version: XPU UNIX x86_64 Kernel Module  {driver}  Tue Jul 22 2025\n"
    (root / "proc/kunlun/version").write_text(line)
    (root / "opt/xre/so").mkdir(parents=True)
    (root / "opt/xre/so/libxpurt.so.2").touch()
    for slot in range(nodes):
        device = root / f"sys/bus/pci/devices/0000:{slot:02x}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x1d22\n")
        (device / "device").write_text("0x3688\n")
    return root


class TestFacts:
    def test_read_from_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(facts, "find_paddle", lambda: HEALTHY.paddle)
        found = facts.gather(machine(tmp_path, nodes=12))
        assert [Path(node).name for node in found.nodes][:3] == ["xpu0", "xpu1", "xpu2"]
        assert Path(found.nodes[-1]).name == "xpu11"  # by number, not by name
        assert (found.control, found.driver, found.closed) == (True, "5.0.21.26", ())
        assert found.runtime.endswith("libxpurt.so.2")
        assert found.chips == ("p800",) * 12

    def test_visible_devices(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XPU_VISIBLE_DEVICES", "3, 1")
        found = facts.gather(machine(tmp_path, nodes=4))
        assert [Path(node).name for node in found.nodes] == ["xpu3", "xpu1"]

    def test_an_empty_machine(self, tmp_path: Path) -> None:
        found = facts.gather(tmp_path)
        assert (found.nodes, found.control, found.driver, found.chips) == ((), False, "", ())

    def test_runtime_in_the_library_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "here").mkdir()
        (tmp_path / "here/libxpurt.so").touch()
        monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path / 'here'}")
        assert facts.gather(tmp_path).runtime == str(tmp_path / "here/libxpurt.so")

    def test_version_file_of_paddle(self) -> None:
        text = "full_version     = '3.3.0'\nxpu_xre_version  = '5.0.21.21'\nis_tagged = True\n"
        assert facts.described(text, "/p") == Paddle("3.3.0", "5.0.21.21", "/p")
        assert facts.described("full_version = '3.3.1'\nxpu_xre_version = 'False'\n") == Paddle("3.3.1")


def only_reason(found: Facts) -> Reason:
    verdict = judge(found)
    assert len(verdict.reasons) == 1, verdict
    reason = verdict.reasons[0]
    assert reason.subject
    assert reason.want
    assert reason.have
    assert reason.fix
    return reason


class TestVerdict:
    def test_a_healthy_machine(self) -> None:
        assert judge(HEALTHY).ok
        infos = devices(HEALTHY, "xpu")
        assert [(str(i.device), i.arch, i.arch_rank) for i in infos] == [
            ("xpu:0", "p800", 3),
            ("xpu:1", "p800", 3),
        ]
        assert infos[0].driver == "5.0.21.26"

    def test_no_node_is_the_one_reason(self) -> None:
        """Where nothing is attached, missing software is no news."""
        reason = only_reason(Facts())
        assert (reason.code, reason.want) == (ReasonCode.NO_DEVICE, "/dev/xpu0")

    @pytest.mark.parametrize(
        ("change", "code", "subject", "have"),
        [
            ({"control": False}, ReasonCode.DRIVER, "XPU control node", "no such node"),
            (
                {"closed": ("/dev/xpu1",)},
                ReasonCode.DRIVER,
                "XPU device nodes",
                "no access to /dev/xpu1",
            ),
            ({"driver": "5.0.9.1"}, ReasonCode.DRIVER, "XPU driver", "5.0.9.1"),
            ({"runtime": ""}, ReasonCode.NOT_INSTALLED, "XPU runtime", "not found"),
            ({"paddle": None}, ReasonCode.NOT_INSTALLED, "Paddle", "not installed"),
            ({"paddle": Paddle("2.6.1", "4.31")}, ReasonCode.ABI, "Paddle", "2.6.1"),
            (
                {"paddle": Paddle("3.3.1")},
                ReasonCode.NOT_BUILT,
                "Paddle's XPU build",
                "paddle 3.3.1 built without XPU",
            ),
        ],
    )
    def test_each_failure_has_its_own_reason(
        self, change: dict[str, object], code: ReasonCode, subject: str, have: str
    ) -> None:
        reason = only_reason(replace(HEALTHY, **change))  # type: ignore[arg-type]
        assert (reason.code, reason.subject, reason.have) == (code, subject, have)

    def test_an_unknown_driver_release_is_no_reason(self) -> None:
        assert judge(replace(HEALTHY, driver="")).ok

    def test_failures_add_up(self) -> None:
        verdict = judge(replace(HEALTHY, control=False, runtime="", paddle=None))
        assert [r.subject for r in verdict.reasons] == ["XPU control node", "XPU runtime", "Paddle"]

    def test_a_container_that_sees_fewer_nodes_than_chips(self) -> None:
        infos = devices(replace(HEALTHY, nodes=("/dev/xpu5",)), "xpu")
        assert [(i.arch, i.device.index) for i in infos] == [("p800", 0)]
        assert devices(replace(HEALTHY, chips=()), "xpu")[0].arch == "unknown"


class TestStandIn:
    """It is there when the user says so, and never by itself."""

    def test_not_by_itself(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("FD_XPU_PLACE", raising=False)
        monkeypatch.setattr("fd_xpu.platform.gather", lambda: facts.gather(tmp_path))
        report = XPUPlatform.probe()
        assert report.devices == ()
        assert report.verdict.reasons[0].code is ReasonCode.NO_DEVICE
        assert XPUPlatform.priority == 50
        assert XPUPlatform().place_type == "xpu"

    def test_when_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FD_XPU_PLACE", "cpu")
        monkeypatch.setattr("fd_xpu.platform.find_paddle", lambda: Paddle("3.3.1"))
        report = XPUPlatform.probe()
        assert [d.arch for d in report.devices] == ["stand_in_cpu"]
        assert "standing in for xpu" in report.devices[0].name
        assert XPUPlatform.priority < 0  # a processor's own plug-in stays the default
        assert XPUPlatform().place_type == "cpu"

    def test_without_paddle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FD_XPU_PLACE", "cpu")
        monkeypatch.setattr("fd_xpu.platform.find_paddle", lambda: None)
        reason = XPUPlatform.probe().verdict.reasons[0]
        assert (reason.code, reason.subject) == (ReasonCode.NOT_INSTALLED, "Paddle")
        assert "pip install paddlepaddle" in reason.fix

    def test_another_place_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FD_XPU_PLACE", "gpu")
        with pytest.raises(ValueError, match=r"FD_XPU_PLACE \(fd-xpu\): want one of xpu, cpu, have 'gpu'"):
            settings.stands_in()


class TestDeclarations:
    def test_manifest_is_what_the_declarations_say(self) -> None:
        written = runpy.run_path(str(ROOT / "plugins/xpu/write_manifest.py"))["text"]()
        file = ROOT / "plugins/xpu/src/fd_xpu/fd_plugin.json"
        assert file.read_text(encoding="utf-8") == written, "run python plugins/xpu/write_manifest.py"
        manifest = read_manifest(file)
        assert manifest.platforms == ("xpu",)
        assert manifest.stamp == stamp()

    def test_version_is_that_of_the_package(self) -> None:
        assert f'version = "{stamp()["version"]}"' in (ROOT / "plugins/xpu/pyproject.toml").read_text()

    def test_no_package_index_is_asked_for_paddle(self) -> None:
        text = (ROOT / "plugins/xpu/pyproject.toml").read_text(encoding="utf-8")
        block = text[text.index("dependencies = [") : text.index("]", text.index("dependencies = ["))]
        assert "paddle" not in block
        assert "optional-dependencies" not in text

    def test_loading_imports_no_paddle(self, tmp_path: Path) -> None:
        code = (
            "import sys, json\n"
            "from fd_core.host.plugins import plugin_host\n"
            "host = plugin_host()\n"
            "xpu = next(p for p in host.plugins if p.found.name == 'xpu')\n"
            "sims = [info.arch for name, info in host.simulated_devices() if name == 'xpu']\n"
            "codes = [r.code.value for r in xpu.verdict.reasons]\n"
            "print(json.dumps([codes, sims, 'paddle' in sys.modules, 'numpy' in sys.modules]))\n"
        )
        environment = {"PATH": "/usr/bin", "HOME": str(tmp_path), "FD_PLUGINS_ONLY": "xpu"}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
        )
        codes, sims, imported, arrays = json.loads(done.stdout)
        if not Path("/dev/xpu0").exists():
            assert codes == ["NO_DEVICE"]
        assert sims == ["r200", "p800", "stand_in_cpu"]
        assert not imported
        assert not arrays

    def test_a_mixed_installation_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A table of another release does not agree with the manifest's stamp."""
        monkeypatch.setenv("FD_XPU_PLACE", "cpu")
        monkeypatch.setattr("fd_xpu.platform.find_paddle", lambda: Paddle("3.3.1"))
        monkeypatch.setattr("fd_xpu.kernels.VERSION", "0.0.9")
        plugin = PluginHost([FOUND], ProbeCache(None), True, 20).plugins[0]
        assert not plugin.loaded
        reason = plugin.verdict.reasons[0]
        assert (reason.code, reason.want, reason.have) == (
            ReasonCode.ABI,
            "version 0.1.0",
            "version 0.0.9",
        )


class TestTable:
    @pytest.mark.parametrize("op", sorted(table()))
    def test_parameters_are_the_ops_own_in_order(self, op: str) -> None:
        spec = catalogue()[op].spec
        mine = arguments(op)
        assert [a.name for a in mine] == [p.name for p in spec.params]
        for argument, param in zip(mine, spec.params, strict=True):
            kinds = {"in": ["in"], "inout": ["inout", "out"], "out": ["out"], "attr": ["attr"]}
            assert param.kind.value in kinds[argument.role], argument
            assert argument.optional == param.optional

    def test_every_kernel_says_that_it_allocates(self) -> None:
        assert all(kernel.allocates and kernel.provider == "fd-xpu" for kernel in kernels())


def tensor(shape: tuple[int, ...], kind: object = float32) -> Tensor:
    return empty_host(TensorSpec(shape, kind))  # type: ignore[arg-type]


class TestNotation:
    LINEAR = tuple(
        signature.parse(name, text)
        for name, text in {
            "x": "in ... K : float",
            "w": "in N K : x | float32",
            "half": "attr",
            "bias": "in? N | 1 half+2*K/2 : float32",
            "out": "out ... N : x",
        }.items()
    )

    def check(self, *values: object) -> None:
        signature.check("demo", self.LINEAR, values)

    def test_fits(self) -> None:
        self.check(tensor((2, 3, 4)), tensor((5, 4)), 1, None, tensor((2, 3, 5)))
        self.check(tensor((4,)), tensor((5, 4)), 1, tensor((5,)), tensor((5,)))
        self.check(tensor((4,)), tensor((5, 4)), 2, tensor((1, 2 + 2 * 2)), tensor((5,)))

    @pytest.mark.parametrize(
        ("values", "error", "message"),
        [
            (((4,), (5, 3), 1, None, (5,)), ValueError, r"demo.w: want \[N, 4\], have \[5, 3\]"),
            (((4,), (5, 4), 1, (6,), (5,)), ValueError, r"demo.bias: want \[5\] or \[1, 5\], have \[6\]"),
            (((2, 4), (5, 4), 1, None, (3, 5)), ValueError, r"demo.out: want \[2, 5\], have \[3, 5\]"),
            (((2, 4), (5, 4), 1, None, (5,)), ValueError, r"demo.out: want \[2, 5\], have \[5\]"),
            ((None, (5, 4), 1, None, (5,)), TypeError, "demo.x: want a tensor, have NoneType"),
        ],
    )
    def test_shapes(self, values: tuple[object, ...], error: type[Exception], message: str) -> None:
        made = [tensor(v) if isinstance(v, tuple) else v for v in values]
        with pytest.raises(error, match=message):
            self.check(*made)

    def test_types(self) -> None:
        with pytest.raises(TypeError, match=r"demo.w: want float32, have bfloat16"):
            self.check(tensor((4,)), tensor((5, 4), bfloat16), 1, None, tensor((5,)))
        with pytest.raises(TypeError, match=r"demo.out: want bfloat16, have float32"):
            self.check(tensor((4,), bfloat16), tensor((5, 4)), 1, None, tensor((5,)))

    def test_at_least(self) -> None:
        rows = (signature.parse("a", "in n : any"), signature.parse("b", "in >=n : any"))
        signature.check("demo", rows, (tensor((2,)), tensor((3,))))
        with pytest.raises(ValueError, match=r"demo.b: want \[>=2\], have \[1\]"):
            signature.check("demo", rows, (tensor((2,)), tensor((1,))))

    @pytest.mark.parametrize("text", ["T H", "input T : float", "in T H"])
    def test_what_it_does_not_have(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"want 'role sizes : types' or 'attr'"):
            signature.parse("x", text)
