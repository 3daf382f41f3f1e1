"""A Llama over two processes, with Paddle's own collectives between them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fd_core.host.session import current_session
from fd_core.testkit.harness import Harness, build

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "models"))
IDS = [3, 90, 14, 7, 7, 101]


@pytest.mark.slow
def test_two_ranks_give_the_engines_logits(tmp_path: Path) -> None:
    """Sums over two ranks are rounded differently from one chain: 1e-5 relative per layer, three layers."""
    pytest.importorskip("paddle", reason="paddlepaddle is not installed")
    from tiny_models import make, save

    folder = save(make("llama2"), tmp_path / "model")
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    script = [str(HERE / "rank.py"), str(folder), str(tmp_path), ",".join(map(str, IDS))]
    command = [sys.executable, *launch, "--log_dir", str(tmp_path / "logs"), *script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, cwd=tmp_path)
    logs = "\n".join(p.read_text("utf-8")[-1500:] for p in (tmp_path / "logs").glob("workerlog.*"))
    assert done.returncode == 0, logs or done.stderr[-1500:]
    want = Harness(build(folder, current_session())).logits("text", IDS)
    for rank in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"rank{rank}.npy"), want, rtol=1e-4, atol=3e-5)
