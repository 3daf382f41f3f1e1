"""Detection, availability, memory and selection: facts go in, choices and reasons come out."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

import fd_core
from fd_core.api import dtype as dt
from fd_core.api.attention import AttentionSpec
from fd_core.api.device import HOST, Device, DeviceInfo, ProbeReport
from fd_core.api.host_platform import HostPlatform, host_memory
from fd_core.api.platform import Platform
from fd_core.api.tensor import TensorSpec
from fd_core.api.verdict import ReasonCode, Verdict
from fd_core.compat.fastdeploy import platform as face_module
from fd_core.host import session as sessions
from fd_core.host.errors import PlatformError
from fd_core.host.reference import ReferencePlatform
from fd_core.host.select import Choice, PlatformFact, choose
from fd_core.layers.attention_backend import PagedAttention
from fd_core.layers.attention_select import select_attention

NO_DRIVER = Verdict.no(ReasonCode.DRIVER, "platform 'gpu'", "a driver", "none", "install it")
CPU = PlatformFact("cpu", "fd-cpu 1.0", 0, 1)
GPU = PlatformFact("gpu", "fd-gpu 1.0", 100, 2)
BROKEN_GPU = PlatformFact("gpu", "fd-gpu 1.0", 100, 0, NO_DRIVER)
REFERENCE = PlatformFact("reference", "fd-core", -1000, 1)


class TestChoice:
    def test_highest_priority_wins(self) -> None:
        assert choose([CPU, GPU, REFERENCE]) == Choice("gpu", False)

    def test_order_of_installation_does_not_matter(self) -> None:
        assert choose([REFERENCE, GPU, CPU]) == choose([CPU, GPU, REFERENCE])

    def test_names_break_ties(self) -> None:
        twin = PlatformFact("apu", "fd-apu 1.0", 100, 1)
        assert choose([GPU, twin]).name == "apu"

    def test_unusable_platform_is_passed_over_and_remembered(self) -> None:
        assert choose([CPU, BROKEN_GPU, REFERENCE]) == Choice("cpu", False, (BROKEN_GPU,))

    def test_named_platform_is_taken_whatever_the_priorities(self) -> None:
        assert choose([CPU, GPU, REFERENCE], "cpu") == Choice("cpu", True)

    def test_named_platform_is_never_replaced(self) -> None:
        with pytest.raises(PlatformError, match=r"'gpu' was asked for.*DRIVER.*fix: install it") as caught:
            choose([CPU, BROKEN_GPU, REFERENCE], "gpu")
        assert caught.value.verdict == NO_DRIVER
        assert "cpu (fd-cpu 1.0): ok" in str(caught.value)

    def test_unknown_name_gets_the_nearest(self) -> None:
        with pytest.raises(
            PlatformError, match=r"want one of gpu, cpu, have 'gpuu'; fix: did you mean 'gpu'"
        ):
            choose([CPU, GPU], "gpuu")

    def test_nothing_usable_lists_every_reason(self) -> None:
        with pytest.raises(PlatformError, match="no platform can be used") as caught:
            choose([BROKEN_GPU])
        assert "fd-gpu 1.0" in str(caught.value)

    def test_fallback_policy_follows_from_the_choice(self) -> None:
        assert sessions.default_policy(Choice("cpu", True)) == "error"
        assert sessions.default_policy(Choice("cpu", False)) == "warn"
        assert sessions.default_policy(Choice("reference", True)) == "warn"


class TestAnnouncement:
    def test_rejected_platforms_are_named_with_reasons(self, caplog: pytest.LogCaptureFixture) -> None:
        sessions.announce(Choice("cpu", False, (BROKEN_GPU,)))
        assert "install it" in caplog.text

    def test_what_the_user_switched_off_is_not(self, caplog: pytest.LogCaptureFixture) -> None:
        off = Verdict.no(ReasonCode.DISABLED, "plug-in 'gpu'", "enabled", "FD_PLUGINS_BLOCK=gpu")
        sessions.announce(Choice("cpu", False, (PlatformFact("gpu", "fd-gpu", 1, 0, off),)))
        assert caplog.text == ""

    def test_reference_platform_says_that_it_is_slow(self, caplog: pytest.LogCaptureFixture) -> None:
        sessions.announce(Choice("reference", False))
        assert "slowly" in caplog.text
        assert "pip install fd-cpu" in caplog.text


class TestReferencePlatform:
    def test_is_always_available(self) -> None:
        assert len(ReferencePlatform.probe().devices) == 1
        info = ReferencePlatform().open(0)
        assert (info.device, info.arch) == (HOST, "numpy")

    def test_session_runs_on_oracles_alone(self) -> None:
        session = sessions.open_session("reference")
        assert {op.kernel.provider for op in session.ops.table.values()} == {"oracle"}
        assert not session.ops.missing
        x = np.array([[3.0, 4.0]], np.float32)
        tensors = [session.platform.from_host(a) for a in (x, np.ones(2, np.float32), np.empty_like(x))]
        session.ops.rms_norm(tensors[0], tensors[1], 0.0, tensors[2])
        np.testing.assert_allclose(tensors[2].numpy(), x / np.sqrt(12.5), rtol=1e-6)
        (row,) = session.ledger.rows()
        assert (row.op, row.provider, row.calls, row.fallbacks) == ("rms_norm", "oracle", 1, 0)

    def test_other_index_is_refused(self) -> None:
        with pytest.raises(PlatformError, match=r"'reference' cannot be opened.*one of 1 devices.*index 3"):
            sessions.open_session("reference", 3)


class TestCurrentPlatform:
    def test_is_the_sessions_platform(self) -> None:
        assert fd_core.current_platform is sessions.current_session().platform
        assert isinstance(fd_core.current_platform, Platform)

    def test_unknown_attribute(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'current_plattform'"):
            _ = fd_core.current_plattform

    def test_import_is_fast_and_pulls_in_nothing_heavy(self) -> None:
        heavy = "numpy tvm_ffi pydantic pluggy importlib_metadata torch paddle fd_cpu"
        code = f"import fd_core, sys; print([m for m in {heavy.split()} if m in sys.modules])"
        assert run_python(code) == "[]"

    def test_import_time(self) -> None:
        code = "import time; t = time.perf_counter(); import fd_core; print(time.perf_counter() - t)"
        assert min(float(run_python(code)) for _ in range(3)) < 0.2


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


class TestHostMemory:
    """Limits of control groups, from files as Linux writes them."""

    def write(self, root: Path, **files: str) -> None:
        for name, text in files.items():
            path = root / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def machine(self, root: Path, cgroup: str) -> None:
        self.write(root, proc__meminfo="MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 600 kB\n")
        self.write(root, proc__self__cgroup=cgroup)

    def test_without_groups(self, tmp_path: Path) -> None:
        self.machine(tmp_path, "0::/\n")
        memory = host_memory(tmp_path)
        assert (memory.total, memory.free) == (1000 * 1024, 600 * 1024)
        assert memory.used == memory.total - memory.free

    def test_version_2_takes_the_tightest_ancestor(self, tmp_path: Path) -> None:
        self.machine(tmp_path, "0::/a/b\n")
        for group, limit, used in (("a", "200000", "150000"), ("a/b", "max", "50000")):
            folder = tmp_path / "sys/fs/cgroup" / group
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "memory.max").write_text(limit)
            (folder / "memory.current").write_text(used)
            (folder / "memory.stat").write_text("anon 1\ninactive_file 20000\n")
        memory = host_memory(tmp_path)
        assert (memory.total, memory.free) == (200000, 200000 - (150000 - 20000))

    def test_version_1_in_a_container_without_its_own_path(self, tmp_path: Path) -> None:
        self.machine(tmp_path, "5:cpu:/x\n4:memory:/docker/abc\n")
        folder = tmp_path / "sys/fs/cgroup/memory"
        folder.mkdir(parents=True)
        (folder / "memory.limit_in_bytes").write_text("300000\n")
        (folder / "memory.usage_in_bytes").write_text("100000\n")
        (folder / "memory.stat").write_text("total_inactive_file 0\n")
        memory = host_memory(tmp_path)
        assert (memory.total, memory.free) == (300000, 200000)

    def test_unlimited_group_changes_nothing(self, tmp_path: Path) -> None:
        self.machine(tmp_path, "4:memory:/\n")
        folder = tmp_path / "sys/fs/cgroup/memory"
        folder.mkdir(parents=True)
        (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
        (folder / "memory.usage_in_bytes").write_text("1\n")
        (folder / "memory.stat").write_text("total_inactive_file 0\n")
        assert host_memory(tmp_path).free == 600 * 1024


class TestAttentionBackend:
    """One style for all platforms: UnsupportedOpError that lists what there is."""

    SPEC = AttentionSpec(4, 2, 64, 0.125, dt.float32, dt.float32, 16)
    INFO = DeviceInfo(HOST, "test", "test", 0, 1)

    def test_session_offers_backends_best_first(self) -> None:
        backends = sessions.open_session("reference").attention_backends
        assert PagedAttention in backends
        assert [b.priority for b in backends] == sorted((b.priority for b in backends), reverse=True)

    def test_best_is_the_default(self) -> None:
        class Faster(PagedAttention):
            name: ClassVar[str] = "FASTER"
            priority: ClassVar[int] = 10

        assert select_attention(self.SPEC, self.INFO, [PagedAttention, Faster]) is Faster
        assert (
            select_attention(self.SPEC, self.INFO, [PagedAttention, Faster], PagedAttention.name)
            is PagedAttention
        )

    def test_invalid_name_lists_what_there_is(self) -> None:
        with pytest.raises(Exception, match=r"'INVALID_BACKEND'.*no backend has this name") as caught:
            select_attention(self.SPEC, self.INFO, [PagedAttention], "INVALID_BACKEND")
        assert PagedAttention.name in str(caught.value)


class TestCPUPlatform:
    """Facts of this machine, with the compiled kernels or without."""

    def platform(self) -> HostPlatform:
        return pytest.importorskip("fd_cpu.platform", reason="fd-cpu is not installed").CPUPlatform()

    def test_probe_reports_devices_or_reasons(self) -> None:
        report: ProbeReport = type(self.platform()).probe()
        assert bool(report.devices) == report.verdict.ok
        assert all(reason.fix for reason in report.verdict.reasons)

    @pytest.mark.parametrize("shape", [(0,), (3, 5), (1 << 20, 1)])
    def test_memory_is_aligned_and_writable(self, shape: tuple[int, ...]) -> None:
        tensor = self.platform().empty(TensorSpec(shape, dt.float32))
        assert tensor.ptr % 64 == 0
        tensor.numpy()[...] = 7
        assert (tensor.numpy() == 7).all()

    def test_large_memory_starts_at_a_huge_page(self) -> None:
        assert self.platform().empty(TensorSpec((2 << 20,), dt.uint8)).ptr % (2 << 20) == 0

    def test_more_than_there_is_names_wanted_and_free(self) -> None:
        with pytest.raises(
            MemoryError, match=r"want \d+ bytes for \[1099511627776\] float32, have \d+ free"
        ):
            self.platform().empty(TensorSpec((1 << 40,), dt.float32))

    def test_arrays_are_not_copied(self) -> None:
        array = np.arange(6, dtype=np.int32).reshape(2, 3)
        tensor = self.platform().from_host(array)
        assert tensor.ptr == array.ctypes.data
        assert np.shares_memory(self.platform().to_host(tensor), array)

    def test_levels_are_chosen_by_features_with_reasons(self) -> None:
        ladder = pytest.importorskip("fd_cpu.ladder", reason="fd-cpu is not installed")
        levels = {level.name: level for level in ladder.ladder("x86_64")}
        assert ladder.ladder("x86_64")[0].name == "avx512"
        avx2 = levels["avx2"].needs
        assert levels["avx2"].verdict(avx2).ok
        (reason,) = levels["avx512"].verdict(avx2).reasons
        assert reason.code is ReasonCode.ARCH
        assert "avx512f" in reason.want
        assert levels["base"].verdict(()).ok


class TestFastDeployFace:
    """What FastDeploy's users ask of their platform object, answered for the open device."""

    def face(self, **facts: Any) -> face_module.Platform:
        return face_module.Platform(session_on(**facts))

    @pytest.mark.parametrize(
        ("device_type", "code", "true"),
        [
            ("cpu", 1, {"is_cpu"}),
            ("cuda", 2, {"is_cuda", "is_cuda_alike"}),
            ("xpu", 12, {"is_xpu"}),
            ("apu", 12, set()),
        ],
    )
    def test_predicates_describe_the_device_and_not_a_build(
        self, device_type: str, code: int, true: set[str]
    ) -> None:
        face = self.face(device_type=device_type, code=code)
        names = {"is_cpu", "is_cuda", "is_cuda_alike", "is_xpu"}
        assert {name for name in names if getattr(face, name)()} == true
        assert face.device_name == device_type

    def test_available_asks_the_probe_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        face = self.face(device_type="gpu")
        for facts, available in (([CPU, GPU], True), ([CPU, BROKEN_GPU], False)):
            host = SimpleNamespace(facts=lambda facts=facts: facts)
            monkeypatch.setattr(face_module, "plugin_host", lambda host=host: host)
            assert face.available() is available
        assert face.why() == NO_DRIVER

    @pytest.mark.parametrize("name", ["NATIVE_ATTN", "APPEND_ATTN", "FLASH_ATTN", "BLOCK_ATTN", None])
    def test_paged_attention_under_its_names_is_the_devices_best(self, name: str | None) -> None:
        member = None if name is None else face_module._Backend[name]
        for asked in (name, member):
            path = self.face(backends=[Latent, PagedAttention]).get_attention_backend_cls(asked)
            assert path == f"{Latent.__module__}.Latent"

    def test_a_backend_by_the_name_the_device_gives_it(self) -> None:
        face = self.face(backends=[PagedAttention, Latent])
        assert face.get_attention_backend_cls("MLA_ATTN").endswith(".Latent")
        assert face.get_attention_backend_cls(face_module._Backend.MLA_ATTN).endswith(".Latent")

    @pytest.mark.parametrize("name", ["INVALID_BACKEND", "MLA_ATTN", "DSA_ATTN"])
    def test_what_is_not_offered_is_one_error_on_every_device(self, name: str) -> None:
        for device_type in ("cpu", "cuda", "xpu"):
            face = self.face(device_type=device_type, backends=[PagedAttention])
            with pytest.raises(ValueError, match=rf"'{name}': {device_type} has no such.*PAGED_ATTN, A"):
                face.get_attention_backend_cls(name)

    @pytest.mark.parametrize(
        ("arch", "features", "sm", "fp8"),
        [("sm_90", {"fp8"}, 90, True), ("sm_86", set(), 86, False), ("avx512_vnni", set(), 0, False)],
    )
    def test_device_facts(self, arch: str, features: set[str], sm: int, fp8: bool) -> None:
        face = self.face(arch=arch, features=frozenset(features))
        assert (face.get_sm_version(), face.supports_fp8()) == (sm, fp8)

    def test_quantization_names(self) -> None:
        face = self.face(methods=["wint8", "none"])
        for name in ("wint8", "weight_only"):
            face.verify_quant(name)
        with pytest.raises(ValueError, match=r"'wint2' .* on gpu; have none, weight_only, wint8"):
            face.verify_quant("wint2")

    def test_of_the_process(self) -> None:
        from fd_core.compat import fastdeploy

        face = fastdeploy.current_platform
        session = sessions.current_session()
        assert face.available()
        assert face.device_name == session.platform.device_type
        assert fastdeploy.get_sm_version() == face.get_sm_version()
        assert fastdeploy.get_attention_backend("APPEND_ATTN") is session.attention_backends[0]


class Latent(PagedAttention):
    """A backend with one of FastDeploy's names."""

    name: ClassVar[str] = "MLA_ATTN"


def session_on(
    device_type: str = "gpu", code: int = 2, arch: str = "sm_90", features: frozenset[str] = frozenset(),
    backends: Sequence[type[PagedAttention]] = (), methods: Sequence[str] = (),
) -> Any:  # fmt: skip
    """A session as far as the face looks at it."""
    info = DeviceInfo(Device(device_type, 0, code), "a device", arch, 0, 1, features=features)
    platform = SimpleNamespace(name=device_type, device_type=device_type)
    return SimpleNamespace(
        platform=platform,
        device=info,
        attention_backends=list(backends),
        quant_methods=dict.fromkeys(methods),
    )


def test_opening_sessions_is_quick_after_the_first() -> None:
    sessions.open_session("reference")
    started = time.perf_counter()
    sessions.open_session("reference")
    assert time.perf_counter() - started < 0.5
