"""Core's own attention backend: two ops, so it runs wherever the ops do, oracles included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from fd_core.api.attention import (
    AttentionBackend,
    AttentionBatch,
    AttentionSpec,
    KVCache,
    KVLayout,
    KVWrite,
)
from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import FLOATS, dtype, float32
from fd_core.api.tensor import Tensor
from fd_core.api.verdict import ReasonCode, Verdict
from fd_core.ops.kv_cache.reshape_and_cache_flash import LARGEST_CODE, SCALE_BYTES

_MAX_HEAD_DIM = 512
#: Types whose rows are followed by their scale.
_CODES = tuple(map(dtype, LARGEST_CODE))
_FLOAT_NAMES = " | ".join(map(str, FLOATS))
_OTHER_BACKEND = "FD_ATTENTION_BACKEND names another backend, if one takes it (fd doctor lists them)"
_MODEL = "correct it in the model's config.json"


def _verdicts(name: str, spec: AttentionSpec) -> Iterator[Verdict]:
    if spec.head_dim % 8 or not 8 <= spec.head_dim <= _MAX_HEAD_DIM:
        want = f"a multiple of 8 up to {_MAX_HEAD_DIM}"
        yield Verdict.no(ReasonCode.HEAD_DIM, f"{name}.head_dim", want, spec.head_dim, _OTHER_BACKEND)
    if spec.num_kv_heads < 1 or spec.num_heads % spec.num_kv_heads:
        want = f"a multiple of num_kv_heads = {spec.num_kv_heads}"
        yield Verdict.no(ReasonCode.SHAPE, f"{name}.num_heads", want, spec.num_heads, _MODEL)
    if spec.block_size < 1:
        yield Verdict.no(
            ReasonCode.SHAPE, f"{name}.block_size", "at least 1", spec.block_size, "--block-size 16"
        )
    if spec.window is not None and spec.window < 1:
        yield Verdict.no(ReasonCode.SHAPE, f"{name}.window", "at least 1, or None", spec.window, _MODEL)
    if spec.dtype not in FLOATS:
        yield Verdict.no(
            ReasonCode.DTYPE, f"{name}.dtype", _FLOAT_NAMES, spec.dtype, f"--dtype {FLOATS[0]}"
        )
    wanted = (*(FLOATS if spec.dtype == float32 else (spec.dtype,)), *_CODES)
    if spec.cache_dtype not in wanted:
        fix = f"use a cache of {spec.dtype}"
        want = " | ".join(map(str, wanted))
        yield Verdict.no(ReasonCode.DTYPE, f"{name}.cache_dtype", want, spec.cache_dtype, fix)


class PagedAttention(AttentionBackend):
    """`reshape_and_cache_flash`, then `paged_attention`.

    Pools are head-major, [blocks, kv_heads, block_size, head_dim]: what one key head reads of a block
    is contiguous. The ops see them as [blocks, block_size, kv_heads, head_dim]. A row of a cache of
    codes (int8, float8_e4m3fn) is followed by its scale.
    """

    name: ClassVar[str] = "PAGED_ATTN"
    priority: ClassVar[int] = 0

    def __init__(self, spec: AttentionSpec, device: DeviceInfo, ops: Any) -> None:
        super().__init__(spec, device, ops)
        self._write = ops.reshape_and_cache_flash
        self._attend = ops.paged_attention
        self._mode = str(spec.cache_dtype) if spec.cache_dtype in _CODES else "auto"
        self._options = (float(spec.scale), spec.window or 0, float(spec.soft_cap or 0.0))
        self._views: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    @classmethod
    def supports(cls, spec: AttentionSpec, device: DeviceInfo) -> Verdict:
        """Any device: whether it has the two ops is the dispatch table's question."""
        return Verdict.all(_verdicts(cls.name, spec))

    @classmethod
    def kv_layout(cls, spec: AttentionSpec) -> KVLayout:
        row = spec.head_dim + (SCALE_BYTES if spec.cache_dtype in _CODES else 0)
        shape = (spec.num_kv_heads, spec.block_size, row)
        elements = spec.num_kv_heads * spec.block_size * row
        return KVLayout(shape, 0, spec.cache_dtype, 2 * elements * spec.cache_dtype.itemsize)

    def plan(self, batch: AttentionBatch) -> AttentionBatch:
        """The kernels plan for themselves: their checks and work lists cost a microsecond."""
        return batch

    def run(
        self,
        plan: AttentionBatch,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: KVCache,
        out: Tensor,
        *,
        sinks: Tensor | None = None,
    ) -> None:
        keys, values = self._logical(cache)
        self._write(k, v, keys, values, plan.slot_mapping, None, None, self._mode)
        self.attend(plan, q, cache, out, sinks=sinks)

    def destination(self, plan: AttentionBatch, cache: KVCache) -> KVWrite | None:
        if self.spec.cache_dtype in _CODES:
            return None  # to be quantised on the way
        return KVWrite(*self._logical(cache), plan.slot_mapping)

    def attend(
        self,
        plan: AttentionBatch,
        q: Tensor,
        cache: KVCache,
        out: Tensor,
        *,
        sinks: Tensor | None = None,
    ) -> None:
        keys, values = self._logical(cache)
        lists = (plan.cu_seqlens_q, plan.seq_lens, plan.block_table)
        self._attend(q, keys, values, *lists, sinks, *self._options, out)

    def _logical(self, cache: KVCache) -> tuple[Tensor, Tensor]:
        """Token-major views of the pools, made once per layer: their handles are then reused."""
        place = (cache.key.ptr, cache.value.ptr, *cache.key.shape)
        if place not in self._views:
            self._views[place] = (cache.key.permute(0, 2, 1, 3), cache.value.permute(0, 2, 1, 3))
        return self._views[place]
