"""A random-weight model small enough for thousands of steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fd_core.engine.build import BuiltEngine, assemble, build_engine, build_model, describe, plan_memory
from fd_core.engine.config import EngineConfig
from fd_core.host.freeze import freeze
from fd_core.host.ledger import Ledger
from fd_core.host.session import Session, open_session
from fd_core.layers.attention_backend import PagedAttention
from fd_core.ops.catalogue import catalogue
from fd_core.quantization.unquantized import Unquantized
from fd_core.testkit.faults import Faults
from fd_core.testkit.simulated import SimulatedPlatform, kernel

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 500,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 499,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="session")
def build(tiny_folder: Path) -> Callable[..., BuiltEngine]:
    """An engine over the same random weights each time; options are fields of EngineConfig."""

    def make(**options: Any) -> BuiltEngine:
        given = {"block_size": 8, "max_num_seqs": 8, "max_num_batched_tokens": 64, "seed": 1, **options}
        return build_engine(EngineConfig(model=str(tiny_folder), load_format="dummy", **given))

    return make


def late_session(faults: Faults | None = None, allocating: str = "") -> Session:
    """The simulated device, which does everything as late as it may, with fd-cpu's kernels: exact, fast."""
    host = open_session("cpu")
    platform = SimulatedPlatform(faults or Faults())
    device = replace(platform.open(0), activation_dtype=host.device.activation_dtype)
    ops = host.ops.table
    kernels = [kernel(one, ops[name]) for name, one in catalogue().items() if name in ops]
    kernels = [replace(one, allocates=one.op == allocating) for one in kernels]
    frozen = freeze(catalogue(), kernels, device, policy="error")
    return Session(platform, device, frozen, [PagedAttention], {"none": Unquantized}, Ledger(frozen, {}))


@pytest.fixture(scope="session")
def build_late(tiny_folder: Path) -> Callable[..., BuiltEngine]:
    """As `build`, on the late device; `faults`, `capacity` (bytes) and the `allocating` op are its own."""
    pytest.importorskip("fd_cpu")

    def make(
        faults: Faults | None = None, capacity: int | None = None, allocating: str = "", **options: Any
    ) -> BuiltEngine:
        given = {"block_size": 8, "max_num_seqs": 8, "max_num_batched_tokens": 64, "seed": 1, **options}
        config = EngineConfig(model=str(tiny_folder), load_format="dummy", **given)
        session = late_session(faults, allocating)
        if capacity is not None:
            session.platform.capacity = capacity
        model = build_model(config, session)
        length, blocks = plan_memory(config, session, model)
        engine = assemble(config, session, model, length, blocks)
        return BuiltEngine(engine, model, session, describe(config, session, model, length))

    return make
