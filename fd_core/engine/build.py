"""From a configuration to an engine that is ready: session, model, measured KV pool, runner."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fd_core import environ
from fd_core.api import dtype as dt
from fd_core.api.dtype import DType
from fd_core.engine.config import EngineConfig
from fd_core.engine.dummy import DummyRunner
from fd_core.engine.engine import Engine
from fd_core.engine.guided import GuidedCompiler
from fd_core.engine.kv_manager import KVManager
from fd_core.engine.kv_pools import KVPools
from fd_core.engine.request import ModelInfo
from fd_core.engine.runner import ModelRunner
from fd_core.host.errors import UnsupportedOpError
from fd_core.host.plugins import plugin_host
from fd_core.host.session import Session, open_session
from fd_core.host.weights_dtype import check_weights_dtype
from fd_core.layers.context import ModelContext
from fd_core.loader.open import open_source
from fd_core.models.base import CausalLM
from fd_core.models.config import ModelConfig, load_config
from fd_core.models.registry import resolve
from fd_core.quantization.config import parse_quantization
from fd_core.quantization.registry import QuantChooser

log = logging.getLogger("fd.engine")

#: The model that ships with the package, used when none is named.
EMBEDDED = Path(__file__).parents[1] / "assets" / "tiny"

#: Share of the memory that may be taken where nothing else is said. Host memory is not ours alone.
DEVICE_UTILIZATION, HOST_UTILIZATION = 0.9, 0.5

Progress = Callable[[str], None]


@dataclass(slots=True)
class BuiltEngine:
    engine: Engine
    model: CausalLM
    session: Session
    info: ModelInfo


def model_folder(config: EngineConfig) -> Path:
    return Path(config.model) if config.model else EMBEDDED


def build_engine(config: EngineConfig, progress: Progress = log.info) -> BuiltEngine:
    """Open the device, load the model, size the KV pool. Errors say what to change."""
    config.check()
    session = open_session(config.platform or None, config.device_index)
    progress(f"platform {session.platform.name}: {session.device.name} ({session.device.arch})")
    model = build_model(config, session, progress)
    length, blocks = plan_memory(config, session, model)
    progress(f"KV cache: {blocks} blocks of {config.block_size} tokens; context {length} tokens")
    engine = assemble(config, session, model, length, blocks)
    return BuiltEngine(engine, model, session, describe(config, session, model, length))


def build_model(config: EngineConfig, session: Session, progress: Progress = log.info) -> CausalLM:
    """The model with its weights on the device."""
    folder = model_folder(config)
    parsed = load_config(folder, config.max_model_len)
    context = model_context(config, session, parsed)
    model = resolve(parsed.architectures, plugin_host().models())(parsed, context)
    progress(f"loading {folder.name} ({parsed.architectures[0]}, {context.dtype})")
    seed = config.seed or 0
    source = open_source(folder, config.load_format, config.weight_layout, parsed.weight_layout, seed)
    model.load_weights(source, progress=None if config.show_progress else False)
    return model


def model_context(config: EngineConfig, session: Session, parsed: ModelConfig) -> ModelContext:
    dtype = dt.dtype(parsed.dtype if config.dtype == "auto" else config.dtype)
    refuse_dtype(session, dtype)
    wanted = parse_quantization(parsed.quantization_config, config.quantization, session.quant_methods)
    chooser = QuantChooser(wanted, session.quant_methods, session.device, session.platform, session.ops)
    return ModelContext(
        platform=session.platform,
        device=session.device,
        ops=session.ops,
        dtype=dtype,
        cache_dtype=cache_dtype(config, dtype, wanted.kv_cache),
        block_size=config.block_size,
        max_num_tokens=config.max_num_batched_tokens,
        max_num_seqs=config.max_num_seqs,
        max_model_len=parsed.max_model_len,
        quant=chooser,
        attention_backends=session.attention_backends,
        attention_backend=config.attention_backend or environ.value("FD_ATTENTION_BACKEND") or "",
    )


def refuse_dtype(session: Session, dtype: DType) -> None:
    """UnsupportedOpError before anything is loaded, where the device computes in other types only."""
    if session.device.activation_dtype is not None:
        return  # whatever the weights are, activations have a type of the device's choice
    verdict = check_weights_dtype(session.ops, session.device, dtype)
    if not verdict.ok:
        raise UnsupportedOpError(str(verdict), verdict)


def cache_dtype(config: EngineConfig, dtype: DType, quantised: str = "") -> DType:
    """The user's choice, else what the quantisation says, else the weights' type."""
    named = quantised if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    return dt.dtype(named) if named else dtype


def plan_memory(config: EngineConfig, session: Session, model: CausalLM) -> tuple[int, int]:
    """(context length in tokens, KV blocks): as many blocks as the memory holds and requests can use."""
    block_bytes = sum(layout.bytes_per_block for layout in model.kv_layouts())
    length = model.config.max_model_len
    per_sequence = -(-length // config.block_size)
    useful = per_sequence * config.max_num_seqs
    blocks = min(useful, _kv_bytes(config, session, model, useful * block_bytes) // block_bytes)
    if blocks >= per_sequence:
        return length, blocks
    if config.max_model_len is not None or blocks < 1:
        raise MemoryError(
            f"KV cache: a context of {length} tokens needs {per_sequence * block_bytes} bytes, and there "
            f"is room for {blocks * block_bytes}; lower max_model_len to at most "
            f"{max(0, blocks * config.block_size)}, or raise kv_cache_memory"
        )
    log.warning(
        "context cut from %d to %d tokens: the KV cache holds no more", length, blocks * config.block_size
    )
    return blocks * config.block_size, blocks


def _kv_bytes(config: EngineConfig, session: Session, model: CausalLM, useful: int) -> int:
    """Bytes for the pool: given, or what is left after a full step has shown what it needs."""
    if config.kv_cache_memory is not None:
        return config.kv_cache_memory
    memory = session.platform.memory()
    on_host = "host_memory" in session.device.features
    share = config.memory_utilization or (HOST_UTILIZATION if on_host else DEVICE_UTILIZATION)
    if useful < memory.free * share / 4:
        return useful  # a fraction of what is free: measuring would change nothing
    dummy = DummyRunner(
        model,
        max_num_tokens=config.max_num_batched_tokens,
        max_model_len=model.config.max_model_len,
        block_size=config.block_size,
    )
    measure_full_step(config, model, dummy)
    graphs = dummy.graph_bytes(config.max_num_seqs, config.graph_sizes) if config.enable_graphs else 0
    gc.collect()  # runners and their graphs refer to one another
    after = session.platform.memory()
    return int((after.free * share if on_host else after.free - after.total * (1 - share)) - graphs)


def measure_full_step(config: EngineConfig, model: CausalLM, dummy: DummyRunner) -> None:
    """Touch everything a step of the full token budget touches, so that free memory tells the truth."""
    length = min(config.max_num_batched_tokens, model.config.max_model_len - 1)
    dummy.run(1, length, mode="prefill")


def assemble(config: EngineConfig, session: Session, model: CausalLM, length: int, blocks: int) -> Engine:
    layouts = model.kv_layouts()
    host_blocks = config.swap_space // sum(layout.bytes_per_block for layout in layouts)
    pools = KVPools(session.platform, session.ops, layouts, blocks, host_blocks)
    lookahead = looks_ahead(config, session)
    runner = ModelRunner(
        model,
        pools,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_tokens=config.max_num_batched_tokens,
        max_model_len=length,
        use_graphs=config.enable_graphs,
        graph_sizes=config.graph_sizes,
        lookahead=lookahead,
    )
    runner.warm_up()
    kv = KVManager(blocks, config.block_size, host_blocks=host_blocks, prefix=config.enable_prefix_caching)
    return Engine(
        runner,
        kv,
        max_num_tokens=config.max_num_batched_tokens,
        max_model_len=length,
        max_logprobs=config.max_logprobs,
        eos_token_ids=list(model.config.eos_token_ids),
        guided=_guided(config, model),
        seed=config.seed,
        lookahead=lookahead,
    )


def looks_ahead(config: EngineConfig, session: Session) -> bool:
    """Whether a step is planned while the one before runs."""
    if config.async_scheduling == "auto":
        return "asynchronous" in session.device.features
    return config.async_scheduling == "on"


def _guided(config: EngineConfig, model: CausalLM) -> GuidedCompiler | None:
    file = model_folder(config) / "tokenizer.json"
    return (
        GuidedCompiler(file, model.config.vocab_size, model.config.eos_token_ids)
        if file.is_file()
        else None
    )


def describe(config: EngineConfig, session: Session, model: CausalLM, length: int) -> ModelInfo:
    device: Any = session.device
    return ModelInfo(
        name=model_folder(config).name,
        vocab_size=model.config.vocab_size,
        max_model_len=length,
        eos_token_ids=list(model.config.eos_token_ids),
        platform=session.platform.name,
        device=f"{device.name} ({device.arch})",
        dtype=str(model.context.dtype),
        quantization=config.quantization,
        max_num_seqs=config.max_num_seqs,
        max_logprobs=config.max_logprobs,
    )
