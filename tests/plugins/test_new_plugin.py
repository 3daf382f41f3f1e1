"""`fd new-plugin`: what it writes installs into a clean environment, passes the kit and runs a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from fd_core.api.manifest import read_manifest
from fd_core.api.version import PLUGIN_API
from fd_core.cli import main, new_plugin
from fd_core.host.errors import FdError

ROOT = Path(__file__).parents[2]


class TestFiles:
    def test_four_files_of_about_a_hundred_lines(self, tmp_path: Path) -> None:
        files = new_plugin.write("hello", tmp_path)
        assert [str(f.relative_to(tmp_path / "fd-hello")) for f in files] == [
            "pyproject.toml",
            "src/fd_hello/__init__.py",
            "src/fd_hello/fd_plugin.json",
            "tests/test_conformance.py",
        ]
        assert sum(len(f.read_text().splitlines()) for f in files) < 130
        assert not any(word in f.read_text() for f in files for word in ("@name@", "@Name@", "@api@"))
        manifest = read_manifest(files[2])
        assert manifest.api.min == manifest.api.max == PLUGIN_API
        assert manifest.platforms == ("hello",)

    def test_kernel_template_adds_three(self, tmp_path: Path) -> None:
        names = {f.name for f in new_plugin.write("hello", tmp_path, kernel=True)}
        assert {"setup.py", "kernels.py", "rms_norm.c"} < names
        package = (tmp_path / "fd-hello/src/fd_hello/__init__.py").read_text()
        assert "def fd_kernels" in package

    def test_python_files_compile(self) -> None:
        for path, text in new_plugin.contents("hello", kernel=True).items():
            if path.endswith(".py"):
                compile(text, path, "exec")

    @pytest.mark.parametrize("name", ["", "Hello", "hello-1", "../x", "1st", "a" * 40])
    def test_bad_name(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(FdError, match="want a name of small letters and digits, have"):
            new_plugin.write(name, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_existing_folder_is_left_alone(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "fd-hello").mkdir()
        assert main.main(["new-plugin", "hello", "--into", str(tmp_path)]) == 1
        assert "want a new folder" in capsys.readouterr().err
        assert list((tmp_path / "fd-hello").iterdir()) == []


def environment(folder: Path) -> Path:
    """A virtual environment without pip that sees this one's packages; its interpreter."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    paths = [str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "outer.pth").write_text("\n".join(dict.fromkeys(paths)) + "\n")
    return python


def run(*command: object, folder: Path, **variables: str) -> str:
    """Its output; AssertionError with it when the command fails."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FD_", "PYTHON"))}
    words = [str(word) for word in command]
    env = {**kept, "HOME": str(folder), **variables}
    result = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [False, True], ids=["base", "kernel"])
def test_from_nothing_to_a_served_model(kernel: bool, tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    new_plugin.write("hello", tmp_path, kernel)
    python, plugin = environment(tmp_path / "venv"), tmp_path / "fd-hello"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps"]
    run(*pip, "--no-build-isolation", plugin, folder=tmp_path)

    report = tmp_path / "report.json"
    options = ["-q", "-p", "fd_core.testkit.pytest_plugin", "-k", "rms_norm or argmax or model"]
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # the kit is named, whether or not it is installed
    run(python, "-m", "pytest", *options, "--fd-report", report, plugin, folder=tmp_path, **alone)
    found = json.loads(report.read_text())
    assert found["providers"]["rms_norm"] == ("fd-hello" if kernel else "oracle")
    assert {row["status"] for row in found["findings"]} == {"pass", "skip"}

    words = ["--platform", "hello", "--max-tokens", "5", "--temperature", "0", "--ignore-eos"]
    limits = ["--kv-cache-memory", "4M", "--max-model-len", "128"]
    generate = [python, "-m", "fd_core", "generate", *words, *limits, "A decorator is"]
    text = run(*generate, folder=tmp_path, FD_FALLBACK="allow")
    words[1] = "reference"
    generate = [python, "-m", "fd_core", "generate", *words, *limits, "A decorator is"]
    assert text == run(*generate, folder=tmp_path)
    assert len(text.strip()) > len("A decorator is")
