"""Everything that shapes an engine, as one typed structure that can cross a process border."""

from __future__ import annotations

import msgspec


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`model`: folder in Hugging Face layout; empty for the embedded model.

    `dtype`: weights' type, "auto" = the checkpoint's. `weight_layout`: "out_in" or "in_out" for linear
    weights of files that do not say it themselves. `kv_cache_dtype`: "auto" = the weights' type.
    `max_model_len` None: the model's, cut to what the KV pool holds. `kv_cache_memory`: bytes for the KV
    pool, None = measured (`memory_utilization` of the device less what a full step needs). `swap_space`:
    bytes of host memory for preempted requests; 0 = they are recomputed. `max_num_batched_tokens`: token
    budget of a step, and so the longest prefill chunk. `graph_sizes`: numbers of rows for which
    decode steps are recorded; empty: the usual ones up to `max_num_seqs`. `async_scheduling`: plan and
    queue a step while the one before runs: "auto" where the device works asynchronously, "on", "off".
    """

    model: str = ""
    platform: str = ""
    device_index: int = 0
    dtype: str = "auto"
    load_format: str = "auto"
    weight_layout: str = "auto"
    quantization: str = ""
    kv_cache_dtype: str = "auto"
    attention_backend: str = ""
    block_size: int = 64
    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 1024
    kv_cache_memory: int | None = None
    memory_utilization: float | None = None
    swap_space: int = 0
    enable_prefix_caching: bool = True
    enable_graphs: bool = True
    graph_sizes: tuple[int, ...] = ()
    async_scheduling: str = "auto"
    max_logprobs: int = 20
    seed: int | None = None
    show_progress: bool = False

    def check(self) -> None:
        """Raise ValueError for values no engine can run with."""
        positive = ("block_size", "max_num_seqs", "max_num_batched_tokens")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: want >= 1, have {getattr(self, name)}")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ValueError(f"max_model_len: want >= 2, have {self.max_model_len}")
        if any(size < 1 for size in self.graph_sizes):
            raise ValueError(f"graph_sizes: want numbers >= 1, have {list(self.graph_sizes)}")
        if self.async_scheduling not in ("auto", "on", "off"):
            raise ValueError(f"async_scheduling: want one of auto, on, off; have {self.async_scheduling!r}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens: want at least max_num_seqs ({self.max_num_seqs}), so that every "
                f"running request gets its token each step; have {self.max_num_batched_tokens}"
            )
