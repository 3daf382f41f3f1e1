"""Attention over a paged cache in token-major blocks: planned once per step, run per layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fd_core.api.attention import AttentionBackend, AttentionBatch, AttentionSpec, KVCache, KVLayout
from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import FLOATS, float32, int8
from fd_core.api.tensor import Tensor
from fd_core.api.verdict import ReasonCode, Verdict
from fd_xpu.kernels import PADDLE_TENSORS
from fd_xpu.memory import SCALE_BYTES, as_paddle

if TYPE_CHECKING:
    from fd_xpu.paging import Work

MAX_HEAD_DIM = 512


@dataclass(frozen=True, slots=True)
class Plan:
    """A step on the device. `slots`: rows of the pools for the tokens `kept` (None: all of them) that are
    written; `total`: tokens that have a query."""

    slots: Any
    kept: Any
    works: tuple[Work, ...]
    total: int


class PaddleAttention(AttentionBackend):
    """Pools are [blocks, block_size, kv_heads, head_dim]: a token is one row to scatter and to gather. A
    head's row of an int8 pool is followed by its scale."""

    name: ClassVar[str] = "PADDLE_ATTN"
    priority: ClassVar[int] = 50

    @classmethod
    def supports(cls, spec: AttentionSpec, device: DeviceInfo) -> Verdict:
        """Any heads that group, a head size that is a multiple of 8, floating-point caches."""
        return Verdict.all(_verdicts(cls.name, spec, device))

    @classmethod
    def kv_layout(cls, spec: AttentionSpec) -> KVLayout:
        row = spec.head_dim + (SCALE_BYTES if spec.cache_dtype == int8 else 0)
        shape = (spec.block_size, spec.num_kv_heads, row)
        elements = spec.block_size * spec.num_kv_heads * row
        return KVLayout(shape, 0, spec.cache_dtype, 2 * elements * spec.cache_dtype.itemsize)

    def plan(self, batch: AttentionBatch) -> Plan:
        """Reads the step's four lists back (the only wait of a step) and numbers the rows to move."""
        from fd_xpu.compute import host, like
        from fd_xpu.paging import groups, on_device

        spec, at = self.spec, as_paddle(batch.seq_lens)
        cu, lengths, table, slots = (host(as_paddle(x)) for x in _lists(batch))
        parts = groups(cu, lengths, table, spec.block_size, spec.window or 0)
        works = tuple(on_device(part, part.slots, part.slots, at) for part in parts)
        kept = np.flatnonzero(slots >= 0)
        chosen = None if kept.size == slots.size else like(kept, at)
        return Plan(like(slots[kept], at) if kept.size else None, chosen, works, int(cu[-1]))

    def run(
        self,
        plan: Plan,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: KVCache,
        out: Tensor,
        *,
        sinks: Tensor | None = None,
    ) -> None:
        from fd_xpu.call import rounded
        from fd_xpu.paging import Options, attend

        keys, values = (rows(pool) for pool in (cache.key, cache.value))
        if plan.slots is not None:
            for new, pool in ((k, keys), (v, values)):
                store(as_paddle(new), pool, plan)
        if not plan.works:
            return
        given = None if sinks is None else as_paddle(sinks)
        options = Options(float(self.spec.scale), float(self.spec.soft_cap or 0.0), given)
        found = attend(as_paddle(q), keys, values, plan.works, self.spec.num_kv_heads, options)
        target = as_paddle(out.slice(0, plan.total))
        target.copy_(rounded(found, target.dtype), False)


def _lists(batch: AttentionBatch) -> tuple[Tensor, ...]:
    return (batch.cu_seqlens_q, batch.seq_lens, batch.block_table, batch.slot_mapping)


def rows(pool: Tensor) -> Any:
    """The pool as [slots, kv_heads * head_dim]."""
    blocks, size, heads, dim = pool.shape
    return as_paddle(pool.view(blocks * size, heads * dim))


def store(new: Any, pool: Any, plan: Plan) -> None:
    """Rows of the new tokens into their slots."""
    from fd_xpu.call import rounded
    from fd_xpu.compute import put_rows, take_rows
    from fd_xpu.framework import paddle
    from fd_xpu.paging import coded

    chosen = new if plan.kept is None else take_rows(new, plan.kept)
    stored = coded(chosen) if pool.dtype == paddle.int8 else rounded(chosen, pool.dtype)
    put_rows(pool, plan.slots, stored.reshape([chosen.shape[0], -1]))


_OTHER = "FD_ATTENTION_BACKEND names another backend, if one takes it (fd doctor lists them)"
_MODEL = "correct it in the model's config.json"


def _verdicts(name: str, spec: AttentionSpec, device: DeviceInfo) -> Iterator[Verdict]:
    if PADDLE_TENSORS not in device.features:
        have = " ".join(sorted(device.features)) or "none"
        yield Verdict.no(ReasonCode.FEATURE, name, f"a device with {PADDLE_TENSORS}", have, _OTHER)
    if spec.head_dim % 8 or not 8 <= spec.head_dim <= MAX_HEAD_DIM:
        want = f"a multiple of 8 up to {MAX_HEAD_DIM}"
        yield Verdict.no(ReasonCode.HEAD_DIM, f"{name}.head_dim", want, spec.head_dim, _OTHER)
    if spec.num_kv_heads < 1 or spec.num_heads % spec.num_kv_heads:
        want = f"a multiple of num_kv_heads = {spec.num_kv_heads}"
        yield Verdict.no(ReasonCode.SHAPE, f"{name}.num_heads", want, spec.num_heads, _MODEL)
    if spec.window is not None and spec.window < 1:
        yield Verdict.no(ReasonCode.SHAPE, f"{name}.window", "at least 1, or None", spec.window, _MODEL)
    allowed = (*(FLOATS if spec.dtype == float32 else (spec.dtype,)), int8)
    if spec.dtype not in FLOATS or spec.cache_dtype not in allowed:
        want = " | ".join(map(str, allowed if spec.dtype in FLOATS else FLOATS))
        have = f"{spec.dtype} with a cache of {spec.cache_dtype}"
        fix = "--dtype bfloat16, and --kv-cache-dtype auto or int8"
        yield Verdict.no(ReasonCode.DTYPE, f"{name}.dtype", want, have, fix)
