"""Importing TVM-FFI brings no array framework along, and hides nothing from anybody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, threading
from fd_core.api import ffi
LIBRARY = sys.argv[1]
assert LIBRARY not in sys.modules
found = []
hide = ffi._Hide()
threading.Thread(target=lambda: found.append(hide.find_spec(LIBRARY, None))).start()
module = ffi.tvm_ffi()
assert module.from_dlpack
assert LIBRARY not in sys.modules, "an installed framework was imported"
assert found == [None]
assert __import__(LIBRARY).here
assert ffi.tvm_ffi() is module
"""


def library(folder: Path, name: str, text: str) -> dict[str, str]:
    """The environment of a process that has a library called `name` installed."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return {**os.environ, "PYTHONPATH": path}


def run(env: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["torch", "paddle", "cupy", "jax"])
def test_an_installed_framework_stays_out(tmp_path: Path, name: str) -> None:
    result = run(library(tmp_path, name, "here = True\n"), "-c", SCRIPT, name)
    assert result.returncode == 0, result.stderr


USED = """
import fd_core.llm, fd_core.cli.main, fd_core.cli.serve, fd_core.serving.server, fd_core.engine.process
from fd_core.cli.main import main
main(["generate", "A list is", "--max-tokens", "2"])
import sys
assert not {"torch", "paddle"} & set(sys.modules), "an installed framework was imported"
"""


@pytest.mark.parametrize("name", ["torch", "paddle"])
def test_serving_and_generating_never_import_a_framework(tmp_path: Path, name: str) -> None:
    """Not even one whose import would end the process."""
    result = run(library(tmp_path, name, "import os; os._exit(99)\n"), "-c", USED)
    assert result.returncode == 0, result.stderr
