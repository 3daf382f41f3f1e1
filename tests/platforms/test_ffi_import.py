"""Importing TVM-FFI brings no array framework along, and hides nothing from anybody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys, threading
from fd_core.api import ffi
assert "torch" not in sys.modules
found = []
hide = ffi._Hide()
threading.Thread(target=lambda: found.append(hide.find_spec("torch", None))).start()
module = ffi.tvm_ffi()
assert module.from_dlpack
assert "torch" not in sys.modules, "an installed framework was imported"
assert found == [None]
import torch
assert torch.here
assert ffi.tvm_ffi() is module
"""


def test_an_installed_framework_stays_out(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("here = True\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
