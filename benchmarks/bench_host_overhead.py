"""Host time of a decode step: the whole engine on a device whose work costs nothing.

    python benchmarks/bench_host_overhead.py [--batches 1,64] [--steps 400] [--context 512]
                                             [--label TEXT] [--out FILE]

Every kernel is an empty function, a captured decode step replays nothing, memory is apart from the
host's, so what is left is the engine's own work: scheduling, step inputs, copies of step inputs, one
call per op that is launched, bookkeeping, output messages. A device hides it where it takes less than
the step's work there (a 8B model in 16 bit on a fast accelerator: 4 ms at batch 1, 9 ms at batch 64).
`python_ms`: medians of `Engine.step` alone; `calls`: copies and waits asked of the platform per step.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform as machine
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fd_core.api.device import Device, DeviceInfo, MemoryInfo, ProbeReport
from fd_core.api.kernel import Kernel
from fd_core.api.platform import Platform
from fd_core.api.tensor import Storage, Tensor, TensorSpec, from_numpy
from fd_core.engine.build import assemble, build_model
from fd_core.engine.config import EngineConfig
from fd_core.engine.engine import Engine
from fd_core.engine.request import EngineRequest, SamplingParams
from fd_core.host.freeze import freeze
from fd_core.host.ledger import Ledger
from fd_core.host.session import Session
from fd_core.layers.attention_backend import PagedAttention
from fd_core.ops.catalogue import catalogue
from fd_core.quantization.unquantized import Unquantized

DEVICE = Device("nothing", 0, 12)
FEATURES = frozenset({"graph_capture", "asynchronous"})
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "eos_token_id": 999,
    "torch_dtype": "bfloat16",
}
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "top-p": {"temperature": 0.8, "top_p": 0.9, "seed": 1},
}


class Replay:
    def replay(self) -> None:
        return None


class Nothing(Platform):
    """Memory of its own (host bytes by another name); kernels that do nothing."""

    name: ClassVar[str] = "nothing"
    device_type: ClassVar[str] = "nothing"

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    @classmethod
    def probe(cls) -> ProbeReport:
        return ProbeReport()

    def open(self, index: int) -> DeviceInfo:
        return DeviceInfo(DEVICE, "nothing", "none", 0, 1 << 40, features=FEATURES)

    def empty(self, spec: TensorSpec) -> Tensor:
        memory = np.zeros(spec.nbytes + 1, np.uint8)
        start = memory.ctypes.data
        return Tensor(start, spec.shape, spec.dtype, Storage(start, spec.nbytes, DEVICE, memory, self))

    def from_host(self, array: np.ndarray[Any, Any]) -> Tensor:
        source = from_numpy(np.ascontiguousarray(array).reshape(array.shape))
        tensor = self.empty(source.spec)
        self.copy_(tensor, source)
        return tensor

    def to_host(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        self.calls["to_host"] += 1
        return np.array(_host(tensor).numpy())

    def copy_(self, dst: Tensor, src: Tensor) -> None:
        self.calls["copy"] += 1
        _host(dst).numpy()[...] = _host(src).numpy()

    def synchronize(self) -> None:
        self.calls["synchronize"] += 1

    def memory(self) -> MemoryInfo:
        return MemoryInfo(1 << 40, 0, 1 << 40)

    def capture(self, fn: Callable[[], None]) -> Replay:
        fn()
        return Replay()


def _host(tensor: Tensor) -> Tensor:
    storage = Storage(tensor.storage.ptr, tensor.storage.nbytes, from_numpy(np.zeros(1)).device, tensor)
    return Tensor(tensor.ptr, tensor.shape, tensor.dtype, storage, tensor.strides)


def build(batch: int, context: int) -> tuple[Engine, Nothing]:
    platform = Nothing()
    device = platform.open(0)
    kernels = [Kernel(name, "nothing", lambda *_: None) for name in catalogue()]
    ops = freeze(catalogue(), kernels, device, policy="error")
    session = Session(platform, device, ops, [PagedAttention], {"none": Unquantized}, Ledger(ops, {}))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        config = EngineConfig(
            model=folder,
            load_format="dummy",
            max_num_seqs=max(batch, 1),
            max_num_batched_tokens=max(8192, batch),
            kv_cache_memory=1 << 30,
        )
        model = build_model(config, session)
        engine = assemble(config, session, model, CONFIG["max_position_embeddings"], batch * 64)
    return engine, platform


def measure(batch: int, context: int, steps: int, sampling: dict[str, Any]) -> dict[str, Any]:
    """Median milliseconds of a step of `batch` decoding rows, and platform calls per step."""
    engine, platform = build(batch, context)
    params = SamplingParams(max_tokens=steps + 200, ignore_eos=True, **sampling)
    for i in range(batch):
        prompt = [(i + j) % 900 for j in range(context)]
        engine.add_request(EngineRequest(request_id=str(i), prompt_token_ids=prompt, params=params))
    scheduler = engine.scheduler
    while not (len(scheduler.running) == batch and all(s.num_generated > 3 for s in scheduler.running)):
        engine.step()
    platform.calls.clear()
    gc.collect()
    gc.freeze()
    times = [_timed(engine) for _ in range(steps)]
    gc.unfreeze()
    calls = {name: round(count / steps, 2) for name, count in sorted(platform.calls.items())}
    cuts = statistics.quantiles(times, n=20)
    return {"python_ms": round(statistics.median(times), 4), "p95_ms": round(cuts[-1], 4), "calls": calls}


def _timed(engine: Engine) -> float:
    started = time.perf_counter()
    engine.step()
    return (time.perf_counter() - started) * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", default="1,64")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--label", default="")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for batch in map(int, options.batches.split(",")):
        for name, sampling in SAMPLING.items():
            row = {"batch": batch, "sampling": name}
            row |= measure(batch, options.context, options.steps, sampling)
            rows.append(row)
            sys.stdout.write(json.dumps(row) + "\n")
    if options.out:
        _record(options.out, options.label, rows)
    return 0


def _record(path: Path, label: str, rows: list[dict[str, Any]]) -> None:
    """Append this run: one file holds the runs to compare."""
    runs = json.loads(path.read_text()) if path.exists() else []
    facts = {
        "label": label,
        "command": " ".join(["python", *sys.argv]),
        "processor": machine.processor() or machine.machine(),
        "system": f"{machine.system()} {machine.machine()}",
        "python": machine.python_version(),
        "numpy": np.__version__,
        "when": time.strftime("%Y-%m-%d"),
    }
    path.write_text(json.dumps([*runs, {"facts": facts, "rows": rows}], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
