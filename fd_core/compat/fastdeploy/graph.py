"""FastDeploy's graph options, checked, and what they mean for fd-core's engine and for Paddle's graphs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

_LEVELS = {0: "dynamic graph", 1: "static graph", 2: "static graph compiled by CINN"}


def default_capture_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8..128 by 8, 144..256 by 16, 288..1024 by 32, cut at `max_num_seqs`; descending, so that
    the first is the largest."""
    from fd_core.engine.graphs import capture_sizes

    if max_num_seqs < 1:
        raise ValueError(f"max_num_seqs: want at least 1, have {max_num_seqs}")
    return sorted(capture_sizes(max_num_seqs), reverse=True)


@dataclass(frozen=True, slots=True)
class GraphOptimizationConfig:
    """`graph_opt_level`: 0 dynamic, 1 static, 2 static + CINN; levels above 0 concern models written in
    Paddle. `use_cudagraph`: record decode steps where the device can. Sizes: None for the default ones."""

    graph_opt_level: int = 0
    use_cudagraph: bool = True
    cudagraph_capture_sizes: Sequence[int] | None = None
    cudagraph_capture_sizes_prefill: Sequence[int] = (1, 2, 4, 8)
    max_capture_shape_prefill: int = 512
    cudagraph_num_of_warmups: int = 2
    cudagraph_only_prefill: bool = False
    full_cuda_graph: bool = True
    sot_warmup_sizes: Sequence[int] = (*range(1, 11), 16, 32, 64, 128)
    use_unique_memory_pool: bool = False

    def __post_init__(self) -> None:
        if self.graph_opt_level not in _LEVELS:
            want = ", ".join(f"{level} ({text})" for level, text in _LEVELS.items())
            raise ValueError(f"graph_opt_level: want one of {want}; have {self.graph_opt_level!r}")
        for name in ("cudagraph_capture_sizes", "cudagraph_capture_sizes_prefill", "sot_warmup_sizes"):
            wrong = [n for n in getattr(self, name) or () if not isinstance(n, int) or n < 1]
            if wrong:
                raise ValueError(f"{name}: want whole numbers above 0, have {wrong}")
        if self.cudagraph_num_of_warmups < 0:
            raise ValueError(
                f"cudagraph_num_of_warmups: want at least 0, have {self.cudagraph_num_of_warmups}"
            )

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> GraphOptimizationConfig:
        """From FastDeploy's JSON. ValueError names keys that do not exist."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(
                f"graph_optimization_config: want keys of {', '.join(sorted(known))}; have {unknown}"
            )
        return cls(**options)

    def capture_sizes(self, max_num_seqs: int) -> list[int]:
        """Descending; those above `max_num_seqs` are left out."""
        if self.cudagraph_capture_sizes is None:
            return default_capture_sizes(max_num_seqs)
        return sorted({n for n in self.cudagraph_capture_sizes if n <= max_num_seqs}, reverse=True)

    def real_shape_to_captured_size(self, max_num_seqs: int) -> dict[int, int]:
        """For each batch size the recorded size that serves it: the next one up."""
        sizes = self.capture_sizes(max_num_seqs)[::-1]
        return {n: sizes[bisect_left(sizes, n)] for n in range(1, (sizes[-1] if sizes else 0) + 1)}

    def engine_options(self) -> dict[str, Any]:
        """Keywords of `EngineConfig`: the engine has one kind of graph, recorded decode steps."""
        return {"enable_graphs": self.use_cudagraph and not self.cudagraph_only_prefill}

    def static_options(self) -> dict[str, Any] | None:
        """Keywords of `paddle.jit.to_static` for a model written in Paddle; None for a dynamic graph."""
        if self.graph_opt_level == 0:
            return None
        return {
            "full_graph": self.full_cuda_graph,
            "backend": "CINN" if self.graph_opt_level == 2 else None,
        }
