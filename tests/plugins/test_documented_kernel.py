"""The C++ kernel of docs/plugins.md, compiled by the command that stands there, passes the kit."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fd_core.api.dtype import float32
from fd_core.api.ffi import tvm_ffi
from fd_core.api.kernel import Kernel, Require
from fd_core.api.tensor import from_numpy
from fd_core.cli import new_plugin
from fd_core.host.freeze import freeze
from fd_core.host.ledger import Ledger
from fd_core.host.session import Session
from fd_core.ops.catalogue import find
from fd_core.testkit.kit import examine

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
pytestmark = [
    pytest.mark.skipif(not PAGE.exists(), reason="the documents are not here"),
    pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file that the page shows, and what its command makes of them."""
    folder = tmp_path_factory.mktemp("documented")
    page = PAGE.read_text(encoding="utf-8")
    for name, text in re.findall(r"```cpp\n// (csrc/\S+)\n(.*?)```", page, re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (command,) = re.findall(r"```sh\n(FD=.*?)```", page, re.DOTALL)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words, env = ["sh", "-ec", command], {**os.environ, "PATH": path}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "libmine.so"


@pytest.fixture
def session(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """The device of `fd new-plugin paper` with that kernel."""
    new_plugin.write("paper", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "fd-paper" / "src"))
    monkeypatch.delitem(sys.modules, "fd_paper", raising=False)
    platform = importlib.import_module("fd_paper").PaperPlatform()
    target = tvm_ffi().load_module(str(library)).get_function("silu")
    needs = Require(dtypes={"x": (float32,), "out": (float32,)})
    table = freeze(
        {"silu": find("silu")},
        [Kernel("silu", "fd-paper", target, needs)],
        platform.open(0),
        policy="error",
    )
    return Session(platform, platform.open(0), table, [], {}, Ledger(table, {}))


def test_passes_the_kit(session: Session) -> None:
    found = list(examine(session, ["silu"], ["float32"]))
    assert [f for f in found if f.status == "fail"] == []
    assert {f.check for f in found if f.status == "pass"} >= {
        "agrees_with_oracle",
        "stays_inside",
        "wrong_shapes",
    }


def test_refuses_in_the_form_that_the_page_shows(session: Session) -> None:
    put = session.platform.from_host
    x, out = put(np.ones((2, 4), np.float32)), put(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"silu.out: want size 4 in dimension 1, have \[2, 3\]"):
        session.ops.silu(x, out)
    with pytest.raises(ValueError, match=r"silu: argument 0: want device memory .*have type 1"):
        session.ops.silu(from_numpy(np.ones((2, 4), np.float32)), x)
