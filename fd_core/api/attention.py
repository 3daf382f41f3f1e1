"""The attention interface: a KV layout that is declared, a plan per step, a run per layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import DType
from fd_core.api.tensor import Tensor
from fd_core.api.verdict import Verdict


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What a model asks of attention. `window`: tokens visible to the left including the current
    one, None for all. `soft_cap`: logits become cap * tanh(logits / cap), None for none."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    dtype: DType
    cache_dtype: DType
    block_size: int
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Shape of one layer's K (and V) pool for `n` blocks: `shape` with the block count left out.

    `block_dim` is where the block count goes. `bytes_per_block` counts K and V of one layer.
    """

    shape: tuple[int, ...]
    block_dim: int
    dtype: DType
    bytes_per_block: int

    def pool_shape(self, blocks: int) -> tuple[int, ...]:
        return self.shape[: self.block_dim] + (blocks,) + self.shape[self.block_dim :]


@dataclass(frozen=True, slots=True)
class KVCache:
    """One layer's pools as the layout declares them."""

    key: Tensor
    value: Tensor


@dataclass(frozen=True, slots=True)
class KVWrite:
    """Where a step's keys and values go, for an op that writes them on its way.

    key, value: one layer's pools seen as [blocks, block_size, kv_heads, head_dim], last stride 1, others
    free. slot_mapping [tokens] int64 as in `AttentionBatch`.
    """

    key: Tensor
    value: Tensor
    slot_mapping: Tensor


@dataclass(frozen=True, slots=True)
class PackedRotary:
    """What becomes of the heads of a packed projection, as the op `rope_and_cache` does it.

    cos_sin_cache [positions, rotary_dim] float32: cosines, then sines. q_norm_weight, k_norm_weight
    [head_dim], None for no head norms, whose epsilon is `eps`.
    """

    cos_sin_cache: Tensor
    is_neox: bool
    q_norm_weight: Tensor | None = None
    k_norm_weight: Tensor | None = None
    eps: float = 0.0


@dataclass(slots=True)
class AttentionBatch:
    """One step, in the engine's persistent buffers (views of the step's size; all on the device).

    cu_seqlens_q [seqs+1] int32: exclusive prefix sum of query lengths. seq_lens [seqs] int32: keys
    visible to the last query token of each sequence, this step's included. block_table
    [seqs, max_blocks] int32, -1 = not allocated. slot_mapping [tokens] int64: block * block_size +
    offset for each new token, -1 = do not write. The host copies serve planning without a sync.
    """

    num_tokens: int
    num_seqs: int
    cu_seqlens_q: Tensor
    seq_lens: Tensor
    block_table: Tensor
    slot_mapping: Tensor
    max_query_len: int
    max_seq_len: int


class AttentionBackend(ABC):
    """Built once per model and device: `Backend(spec, device, ops)`; `ops` is the dispatch table."""

    name: ClassVar[str]
    priority: ClassVar[int] = 0

    def __init__(self, spec: AttentionSpec, device: DeviceInfo, ops: Any) -> None:
        self.spec = spec
        self.device = device
        self.ops = ops

    @classmethod
    @abstractmethod
    def supports(cls, spec: AttentionSpec, device: DeviceInfo) -> Verdict:
        """Whether this backend can serve `spec` on `device`."""

    @classmethod
    @abstractmethod
    def kv_layout(cls, spec: AttentionSpec) -> KVLayout:
        """The cache this backend reads and writes."""

    @abstractmethod
    def plan(self, batch: AttentionBatch) -> Any:
        """Work out the step once; the result is passed to every layer's `run`."""

    @abstractmethod
    def run(
        self,
        plan: Any,
        q: Tensor,  # [tokens, heads, head_dim], normed and rotated
        k: Tensor,  # [tokens, kv_heads, head_dim], normed and rotated
        v: Tensor,  # [tokens, kv_heads, head_dim]
        cache: KVCache,
        out: Tensor,  # [tokens, heads, head_dim]
        *,
        sinks: Tensor | None = None,  # [heads] float32
    ) -> None:
        """Write k and v into the cache, then attend."""

    def destination(self, plan: Any, cache: KVCache) -> KVWrite | None:
        """Where k and v may be written by others before `attend` (optional); None: only `run` writes."""
        return None

    def attend(
        self, plan: Any, q: Tensor, cache: KVCache, out: Tensor, *, sinks: Tensor | None = None
    ) -> None:
        """`run` for keys and values that stand in their `destination` already (where there is one)."""
        raise NotImplementedError(f"{self.name}: attend goes with a destination")

    def run_packed(
        self,
        plan: Any,
        qkv: Tensor,  # [tokens, (heads + 2 * kv_heads) * head_dim], as projected; may be changed
        positions: Tensor,  # [tokens]
        rotary: PackedRotary,
        cache: KVCache,
        out: Tensor,  # [tokens, heads, head_dim]
        *,
        sinks: Tensor | None = None,
    ) -> bool:
        """Norm and rotate the heads of `qkv`, then `run` (optional). False: not here or not for this step,
        nothing has been done.

        The step's lists, and cached tokens of earlier steps, may be read before kernels have ended that
        were queued before: the engine copies lists to the device between steps, and never while one runs.
        """
        return False
