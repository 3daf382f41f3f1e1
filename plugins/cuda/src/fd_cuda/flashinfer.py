"""Attention over FlashInfer, an optional extra: `pip install fd-cuda[flashinfer]`.

FlashInfer plans on the host, so each step reads its lengths and pages back from the device, and steps
cannot be captured: run it with `--no-graphs`. Its wrapper wants torch tensors; ours go in through DLPack
without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from fd_core.api.attention import (
    AttentionBackend,
    AttentionBatch,
    AttentionSpec,
    KVCache,
    KVLayout,
    KVWrite,
)
from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import bfloat16, float16
from fd_core.api.tensor import Tensor
from fd_core.api.verdict import ReasonCode, Verdict
from fd_cuda.attention import check_device, check_heads, head_major
from fd_cuda.stream import current_stream

Array = np.ndarray[Any, Any]
_HEAD_DIMS = (64, 128, 256)
_SPACE = 256 << 20  # bytes that the wrapper keeps partial results and its plan in
_FROM = 80
#: Longest query of a step that is left to the kernels that split a sequence's keys: on sm_90 those of
#: warp groups need 2 to 9 times as long for one query a sequence, and two thirds for 1,024.
_FEW = 64
_NATIVE = "use CUDA_ATTN"


@dataclass(frozen=True, slots=True)
class Pages:
    """FlashInfer's view of a step, int32: queries [seqs + 1] and pages [seqs + 1] as prefix sums, ids of
    all pages in turn, keys in each sequence's last page."""

    queries: Array
    pages: Array
    ids: Array
    last: Array


def pages_of(cu_seqlens_q: Array, seq_lens: Array, table: Array, block_size: int) -> Pages:
    """Sequences without queries have no pages: their lengths and rows mean nothing."""
    lens = np.where(np.diff(cu_seqlens_q) > 0, seq_lens, 0)
    counts = -(-lens // block_size)
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    ids = np.maximum(table[np.arange(table.shape[1]) < counts[:, None]], 0)  # -1: behind the window
    last = (lens - np.maximum(counts - 1, 0) * block_size).astype(np.int32)
    return Pages(cu_seqlens_q.astype(np.int32), ends, ids.astype(np.int32), last)


def _installed(name: str) -> Iterator[Verdict]:
    for module in ("torch", "flashinfer"):
        if find_spec(module) is None:
            fix = "pip install fd-cuda[flashinfer]"
            yield Verdict.no(ReasonCode.NOT_INSTALLED, name, module, "no such module", fix)


def _limits(name: str, spec: AttentionSpec, device: DeviceInfo) -> Iterator[Verdict]:
    if device.arch_rank < _FROM:
        yield Verdict.no(ReasonCode.ARCH, name, f"sm_{_FROM} or newer", device.arch, _NATIVE)
    if spec.head_dim not in _HEAD_DIMS:
        want = " | ".join(map(str, _HEAD_DIMS))
        yield Verdict.no(ReasonCode.HEAD_DIM, f"{name}.head_dim", want, spec.head_dim, _NATIVE)
    if spec.dtype not in (bfloat16, float16):
        yield Verdict.no(
            ReasonCode.DTYPE, f"{name}.dtype", "bfloat16 | float16", spec.dtype, "--dtype bfloat16"
        )
    if spec.cache_dtype != spec.dtype:
        fix = f"use a cache of {spec.dtype}"
        yield Verdict.no(ReasonCode.DTYPE, f"{name}.cache_dtype", spec.dtype, spec.cache_dtype, fix)
    if spec.sinks:
        yield Verdict.no(ReasonCode.FEATURE, f"{name}.sinks", "none", "sinks", _NATIVE)


class FlashInferAttention(AttentionBackend):
    """Below the native backend: it serves what that does, waits for the device in each step and cannot be
    captured. `FD_ATTENTION_BACKEND=FLASHINFER` asks for it."""

    name: ClassVar[str] = "FLASHINFER"
    priority: ClassVar[int] = 50

    def __init__(self, spec: AttentionSpec, device: DeviceInfo, ops: Any) -> None:
        super().__init__(spec, device, ops)
        self._torch: Any = import_module("torch")
        place = f"cuda:{device.device.index}"
        space = self._torch.empty(_SPACE, dtype=self._torch.uint8, device=place)
        make: Any = import_module("flashinfer").BatchPrefillWithPagedKVCacheWrapper
        self._few, self._many = (make(space, "HND", backend=kind) for kind in ("fa2", "auto"))
        self._wrapper = self._many
        self._views: dict[tuple[int, ...], tuple[Tensor, Tensor, Any]] = {}
        self._rows = 0  # of the planned step: what is behind them is padding

    @classmethod
    def supports(cls, spec: AttentionSpec, device: DeviceInfo) -> Verdict:
        """Looks for the packages without importing them."""
        found = check_device(cls.name, device)
        if not found.ok:
            return found
        limits = _limits(cls.name, spec, device)
        return Verdict.all((*_installed(cls.name), *limits, *check_heads(cls.name, spec)))

    @classmethod
    def kv_layout(cls, spec: AttentionSpec) -> KVLayout:
        return head_major(spec)

    def plan(self, batch: AttentionBatch) -> AttentionBatch:
        """Waits for the device. DeviceError while a graph is captured."""
        cu, lens, table = map(_on_host, (batch.cu_seqlens_q, batch.seq_lens, batch.block_table))
        step = pages_of(cu, lens, table, self.spec.block_size)
        self._rows = int(cu[-1])
        self._wrapper = self._few if batch.max_query_len <= _FEW else self._many
        spec, torch = self.spec, self._torch
        on_host = (torch.from_numpy(x) for x in (step.queries, step.pages, step.ids, step.last))
        kind = getattr(torch, spec.dtype.name)
        with self._stream():
            self._wrapper.plan(
                *on_host,
                spec.num_heads,
                spec.num_kv_heads,
                spec.head_dim,
                spec.block_size,
                causal=True,
                sm_scale=spec.scale,
                window_left=-1 if spec.window is None else spec.window - 1,
                logits_soft_cap=spec.soft_cap or 0.0,
                q_data_type=kind,
                kv_data_type=kind,
            )
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
        keys, values, _ = self._of(cache)
        self.ops.reshape_and_cache_flash(k, v, keys, values, plan.slot_mapping, None, None, "auto")
        self.attend(plan, q, cache, out, sinks=sinks)

    def destination(self, plan: AttentionBatch, cache: KVCache) -> KVWrite:
        keys, values, _ = self._of(cache)
        return KVWrite(keys, values, plan.slot_mapping)

    def attend(
        self,
        plan: AttentionBatch,
        q: Tensor,
        cache: KVCache,
        out: Tensor,
        *,
        sinks: Tensor | None = None,
    ) -> None:
        if sinks is not None:
            raise ValueError("FLASHINFER.sinks: want none, have some; use CUDA_ATTN")
        rows, results = (self._torch.from_dlpack(x)[: self._rows] for x in (q, out))
        with self._stream():
            self._wrapper.run(rows, self._of(cache)[2], out=results)

    def _stream(self) -> AbstractContextManager[Any]:
        """torch works on the stream that our kernels run on."""
        raw = current_stream(self.device.device)
        cuda = self._torch.cuda
        return cuda.stream(cuda.ExternalStream(raw)) if raw else nullcontext()

    def _of(self, cache: KVCache) -> tuple[Tensor, Tensor, Any]:
        """The pools token-major, and both as torch tensors; made once per layer."""
        place = (cache.key.ptr, cache.value.ptr, *cache.key.shape)
        if place not in self._views:
            pools = tuple(map(self._torch.from_dlpack, (cache.key, cache.value)))
            views = (cache.key.permute(0, 2, 1, 3), cache.value.permute(0, 2, 1, 3))
            self._views[place] = (*views, pools)
        return self._views[place]


def _on_host(tensor: Tensor) -> Array:
    platform = tensor.storage.platform
    return tensor.numpy() if platform is None else platform.to_host(tensor)
