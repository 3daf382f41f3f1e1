"""How fd-cpu is built: the plan from its tables, the stamp, one library per ISA, aarch64 too."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fd_core.api.manifest import read_manifest
from fd_core.api.tensor import from_numpy
from fd_core.api.version import PLUGIN_API
from fd_core.ops.catalogue import catalogue
from fd_core.testkit.check import check_case
from tests.plugins.emulated import Runner, build_runner

CPU = Path(__file__).parents[2] / "plugins/cpu"
pytestmark = pytest.mark.skipif(
    not (CPU / "CMakeLists.txt").exists(), reason="fd-cpu's sources are not here"
)


@pytest.fixture(scope="module")
def plan() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_plan", CPU / "build_plan.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestPlan:
    def test_every_source_is_in_one_list(self, plan: ModuleType) -> None:
        tuned, untuned = plan.sources(plan.read_toml("kernels.toml"))
        assert not set(tuned) & set(untuned)
        assert {f"csrc/{name}" for name in (*tuned, *untuned)} == {
            str(file.relative_to(CPU)) for file in (CPU / "csrc").glob("*.cc")
        }

    def test_every_listed_op_is_in_the_catalogue(self, plan: ModuleType) -> None:
        assert set(plan.read_toml("kernels.toml")["ops"]) <= set(catalogue())

    def test_a_source_of_two_exports_is_compiled_once(self, plan: ModuleType) -> None:
        table = {
            "support": {"common": ["pool.cc"]},
            "ops": {"a": {"tuned": True}, "b": {"source": "a.cc"}, "c": {"source": ["c1.cc", "c2.cc"]}},
        }
        assert plan.sources(table) == (["a.cc"], ["pool.cc", "c1.cc", "c2.cc"])

    def test_levels_of_another_processor(self, plan: ModuleType) -> None:
        text, levels = plan.plan("aarch64")
        assert levels == ["neon"]
        assert "set(FD_BASE neon)" in text
        with pytest.raises(SystemExit, match=r"no levels for 'vax'; it has x86_64, aarch64"):
            plan.plan("vax")

    def test_manifest_is_valid_and_covers_this_plugin_api(self, plan: ModuleType, tmp_path: Path) -> None:
        plan.write_manifest(tmp_path, {"digest": "x"}, "x86_64")
        manifest = read_manifest(tmp_path / "fd_plugin.json")
        assert manifest.api.max == PLUGIN_API
        names = {"FD_CPU_THREADS", "FD_CPU_AFFINITY", "FD_CPU_ISA", "FD_CPU_LIBRARY"}
        assert {v.name for v in manifest.environment} == names

    def test_unchanged_files_are_left_alone(self, plan: ModuleType, tmp_path: Path) -> None:
        plan.write(tmp_path / "a", "text")
        before = (tmp_path / "a").stat().st_mtime_ns
        plan.write(tmp_path / "a", "text")
        assert (tmp_path / "a").stat().st_mtime_ns == before


# -- CMake -----------------------------------------------------------------------------------------


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def cmake(source: Path, build: Path, *options: str) -> None:
    if shutil.which("ninja"):
        options = ("-G", "Ninja", *options)
    python = f"-DPython_EXECUTABLE={sys.executable}"
    for command in (
        ["cmake", "-S", str(source), "-B", str(build), python, *options],
        ["cmake", "--build", str(build), "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def small_copy(folder: Path) -> Path:
    """fd-cpu with one tuned and one untuned op only."""
    source = folder / "cpu"
    shutil.copytree(
        CPU, source, ignore=shutil.ignore_patterns("build", "__pycache__", "*.so", "fd_plugin.json")
    )
    (source / "kernels.toml").write_text(
        '[support]\ncommon = ["parallel.cc"]\n[ops.rms_norm]\ntuned = true\n[ops.copy_blocks]\n'
    )
    return source


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder with every level of this machine's processor family."""
    need("cmake", "c++")
    folder = tmp_path_factory.mktemp("build")
    cmake(small_copy(folder), folder / "out")
    return folder / "out"


class TestLibraries:
    def names(self, built: Path) -> list[Path]:
        found = sorted(built.glob("libfd_cpu_*.so"))
        stamp = json.loads((built / "fd_plugin.json").read_text())["stamp"]
        assert {f"libfd_cpu_{level}.so" for level in stamp["levels"]} == {file.name for file in found}
        return found

    def test_stamp_of_every_binary_is_the_manifests(self, built: Path) -> None:
        stamp = json.loads((built / "fd_plugin.json").read_text())["stamp"]
        code = "import sys, tvm_ffi; print(tvm_ffi.load_module(sys.argv[1]).get_function('fd_stamp')())"
        for file in self.names(built):
            done = subprocess.run(
                [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
            )
            assert json.loads(done.stdout) == stamp
            assert b"FD_STAMP:{" in file.read_bytes()
        assert {"name", "version", "git", "compiler", "machine", "levels", "digest"} == set(stamp)

    def test_only_exports_are_visible_and_no_path_is_baked_in(self, built: Path) -> None:
        need("nm", "readelf")
        for file in self.names(built):
            names = visible(file)
            own = {
                name for name in names if not name.startswith(("_ZNS", "_ZNK", "_ZS", "_ZT", "_ZGV", "_ZZ"))
            }
            assert {"__tvm_ffi_rms_norm", "__tvm_ffi_copy_blocks", "fd_stamp_text"} <= own
            assert not {name for name in own if not name.startswith(("__tvm_ffi_", "fd_stamp_text"))}
            dynamic = subprocess.run(
                ["readelf", "-d", str(file)], capture_output=True, text=True, check=True
            )
            assert "PATH" not in dynamic.stdout

    def test_levels_share_no_inline_function(self, built: Path) -> None:
        """Kernels of a level and the untuned ones live in namespaces of their own."""
        need("nm")
        listing = subprocess.run(
            ["nm", "-C", str(self.names(built)[0])], capture_output=True, text=True, check=True
        )
        assert "fd_untuned::" in listing.stdout
        assert not re.search(r"\bfd::", listing.stdout)


def visible(file: Path) -> set[str]:
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(file)], capture_output=True, text=True, check=True
    )
    return {line.split()[-1] for line in listing.stdout.splitlines()}


# -- aarch64 -----------------------------------------------------------------------------------------

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


@pytest.fixture(scope="module")
def neon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder of the whole plug-in for another processor (g++-aarch64-linux-gnu)."""
    need("cmake", COMPILER)
    folder = tmp_path_factory.mktemp("aarch64")
    options = {"SYSTEM_NAME": "Linux", "SYSTEM_PROCESSOR": "aarch64", "CXX_COMPILER": COMPILER}
    cmake(CPU, folder, *(f"-DCMAKE_{name}={value}" for name, value in options.items()))
    return folder


@pytest.mark.slow
def test_every_kernel_compiles_for_aarch64(neon: Path) -> None:
    library = neon / "libfd_cpu_neon.so"
    assert library.read_bytes()[18] == 183  # EM_AARCH64
    manifest = read_manifest(neon / "fd_plugin.json")
    assert "aarch64" in manifest.arch
    assert manifest.stamp["levels"] == ["neon"]
    assert {f"__tvm_ffi_{op}" for op in catalogue()} & visible(library)


@pytest.fixture(scope="module")
def runner(neon: Path) -> Iterator[Runner]:
    need(EMULATOR)
    build_runner(COMPILER, Path(__file__).with_name("kernel_runner.cc"), neon / "kernel_runner")
    command = [EMULATOR, "-L", "/usr/aarch64-linux-gnu", neon / "kernel_runner", neon / "libfd_cpu_neon.so"]
    running = Runner(list(map(str, command)))
    yield running
    running.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(catalogue()))
def test_kernel_agrees_with_oracle_on_aarch64(runner: Runner, plan: ModuleType, name: str) -> None:
    """Every case but those for timing, under an emulator (qemu-user)."""
    if name not in plan.read_toml("kernels.toml")["ops"]:
        pytest.skip("fd-cpu has no kernel for it")
    definition = catalogue()[name]
    for case in definition.cases:
        for dtype in () if case.bench else case.dtypes:
            check_case(definition, case, dtype, runner.kernel(name))


@pytest.mark.slow
def test_refusals_on_aarch64(runner: Runner) -> None:
    x, weight = from_numpy(np.ones((2, 4), np.float32)), from_numpy(np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"rms_norm.weight: want size 4 in dimension 0, have \[3\]"):
        runner.kernel("rms_norm")(x, weight, 1e-6, x)
