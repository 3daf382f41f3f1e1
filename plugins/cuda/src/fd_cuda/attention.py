"""The native attention backend: fd-cuda's kernels, told what only the engine knows of a step."""

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
    PackedRotary,
)
from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import FLOATS, bfloat16, float8_e4m3fn, float32, int8
from fd_core.api.tensor import Tensor
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_cuda import library
from fd_cuda.arch import BF16_FROM, rung

_MAX_HEAD_DIM = 512
_OTHER = "FD_ATTENTION_BACKEND names another backend, if one takes it (fd doctor lists them)"
_MODEL = "correct it in the model's config.json"
#: The split kernel keeps partial results in device memory.
_SPLIT, _SPLIT_FROM = "paged_attention_split", 80
#: Rotation, cache write and attention as one call, which is one launch for few sequences.
_PACKED = "rope_and_paged_attention"
#: Types of caches whose rows are followed by their scale, float32.
_CODES, _SCALE_BYTES = (int8, float8_e4m3fn), 4


def check_heads(name: str, spec: AttentionSpec) -> Iterator[Verdict]:
    """What every attention here needs of a specification's sizes."""
    if spec.num_kv_heads < 1 or spec.num_heads % spec.num_kv_heads:
        want = f"a multiple of num_kv_heads = {spec.num_kv_heads}"
        yield Verdict.no(ReasonCode.SHAPE, f"{name}.num_heads", want, spec.num_heads, _MODEL)
    if spec.block_size < 1:
        yield Verdict.no(
            ReasonCode.SHAPE, f"{name}.block_size", "at least 1", spec.block_size, "--block-size 16"
        )
    if spec.window is not None and spec.window < 1:
        yield Verdict.no(ReasonCode.SHAPE, f"{name}.window", "at least 1, or None", spec.window, _MODEL)


def check_types(name: str, spec: AttentionSpec, device: DeviceInfo) -> Iterator[Verdict]:
    """float32 reads a cache of any float type, 16-bit types one of their own; all of them codes."""
    allowed = tuple(t for t in FLOATS if t != bfloat16 or device.arch_rank >= BF16_FROM)
    if spec.dtype not in allowed:
        want = " | ".join(map(str, allowed))
        yield Verdict.no(ReasonCode.DTYPE, f"{name}.dtype", want, spec.dtype, "--dtype float16")
    wanted = (*(allowed if spec.dtype == float32 else (spec.dtype,)), *_CODES)
    if spec.cache_dtype not in wanted:
        want, fix = " | ".join(map(str, wanted)), f"use a cache of {spec.dtype}"
        yield Verdict.no(ReasonCode.DTYPE, f"{name}.cache_dtype", want, spec.cache_dtype, fix)


def check_device(name: str, device: DeviceInfo) -> Verdict:
    if device.device.type != "cuda":
        return Verdict.no(ReasonCode.ARCH, name, "an NVIDIA GPU", device.device, "--platform cuda")
    return YES


def head_major(spec: AttentionSpec) -> KVLayout:
    """Pools [blocks, kv_heads, block_size, head_dim]: what one key head reads of a block is contiguous."""
    row = spec.head_dim + (_SCALE_BYTES if spec.cache_dtype in _CODES else 0)
    shape = (spec.num_kv_heads, spec.block_size, row)
    elements = spec.num_kv_heads * spec.block_size * row
    return KVLayout(shape, 0, spec.cache_dtype, 2 * elements * spec.cache_dtype.itemsize)


def packed(device: DeviceInfo) -> Any:
    """That call, None where this build has none for the device."""
    if not library.contains(rung(device.arch_rank).name, _PACKED).ok:
        return None
    try:
        return library.function(_PACKED)
    except AttributeError:  # FD_CUDA_LIBRARY names libraries of a few kernels
        return None


class CudaAttention(AttentionBackend):
    """Decoding split over the sequence, prefill in tiles on tensor cores; a plain kernel below sm_80 and
    for float32. Caches of int8 or float8 are read as codes, by kernels of their own. Beside what the op
    `paged_attention` gets, the kernels learn the longest query, so that a decoding step is one launch.

    The scratch of partial results is allocated when the backend is built, so steps may be captured; each
    stream that runs steps of its own gets another.
    """

    name: ClassVar[str] = "CUDA_ATTN"
    priority: ClassVar[int] = 100

    def __init__(self, spec: AttentionSpec, device: DeviceInfo, ops: Any) -> None:
        super().__init__(spec, device, ops)
        self._write = ops.reshape_and_cache_flash
        self._attend = library.function("paged_attention_step")
        self._mode = str(spec.cache_dtype) if spec.cache_dtype in _CODES else "auto"
        self._packed = packed(device) if self._mode == "auto" else None
        self._options = (float(spec.scale), spec.window or 0, float(spec.soft_cap or 0.0))
        self._views: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        if device.arch_rank >= _SPLIT_FROM:
            library.function("paged_attention_reserve")(device.device.index)

    @classmethod
    def supports(cls, spec: AttentionSpec, device: DeviceInfo) -> Verdict:
        found = check_device(cls.name, device)
        if not found.ok:
            return found
        if spec.head_dim % 8 or not 8 <= spec.head_dim <= _MAX_HEAD_DIM:
            want = f"a multiple of 8 up to {_MAX_HEAD_DIM}"
            found &= Verdict.no(ReasonCode.HEAD_DIM, f"{cls.name}.head_dim", want, spec.head_dim, _OTHER)
        more = (*check_heads(cls.name, spec), *check_types(cls.name, spec, device))
        built = library.contains(rung(device.arch_rank).name, "paged_attention")
        return Verdict.all((found, *more, built))

    @classmethod
    def kv_layout(cls, spec: AttentionSpec) -> KVLayout:
        return head_major(spec)

    def plan(self, batch: AttentionBatch) -> AttentionBatch:
        """The kernels plan on the device, so a captured step serves other lengths too."""
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
        self._attend(q, keys, values, *lists, sinks, *self._options, plan.max_query_len, out)

    def run_packed(
        self,
        plan: AttentionBatch,
        qkv: Tensor,
        positions: Tensor,
        rotary: PackedRotary,
        cache: KVCache,
        out: Tensor,
        *,
        sinks: Tensor | None = None,
    ) -> bool:
        """Decoding steps alone: the kernel's early reads gain nothing where queries are many."""
        if self._packed is None or plan.max_query_len != 1:
            return False
        norms = (rotary.q_norm_weight, rotary.k_norm_weight, float(rotary.eps))
        places = (*self._logical(cache), plan.slot_mapping, rotary.is_neox)
        lists = (plan.cu_seqlens_q, plan.seq_lens, plan.block_table)
        options = (sinks, *self._options, plan.max_query_len, out)
        self._packed(qkv, positions, rotary.cos_sin_cache, *norms, *places, *lists, *options)
        return True

    def _logical(self, cache: KVCache) -> tuple[Tensor, Tensor]:
        """Token-major views of the pools, made once per layer: their handles are then reused."""
        place = (cache.key.ptr, cache.value.ptr, *cache.key.shape)
        if place not in self._views:
            self._views[place] = (cache.key.permute(0, 2, 1, 3), cache.value.permute(0, 2, 1, 3))
        return self._views[place]
