"""The self-attention block: project, norm and rotate, attend over the paged cache, project back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fd_core.api.attention import AttentionBackend, KVCache, PackedRotary
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.layers.context import ModelContext
from fd_core.layers.linear import Linear
from fd_core.layers.norm import RMSNorm
from fd_core.layers.residual import Residual
from fd_core.layers.scratch import Scratch
from fd_core.layers.weight import Parameter, Weighted, whole


class HeadNorm(Weighted):
    """RMS norm of each query and key head inside the packed projection, before the rotation."""

    q_weight: Tensor
    k_weight: Tensor

    def __init__(
        self, context: ModelContext, prefix: str, q_size: int, kv_size: int, head_dim: int, eps: float
    ) -> None:
        self._platform = context.platform
        self._op = context.ops.qk_rmsnorm_fused
        self.eps = eps
        self._sizes = (q_size, kv_size, head_dim)
        self._spec = TensorSpec((head_dim,), context.activation_dtype)
        self._prefix = prefix

    def parameters(self) -> dict[str, Parameter]:
        return {n: whole(f"{self._prefix}.{n}_norm.weight", self._spec) for n in ("q", "k")}

    def load(self, values: Mapping[str, Tensor]) -> None:
        self.q_weight = self._platform.from_host(values["q"].numpy())
        self.k_weight = self._platform.from_host(values["k"].numpy())

    def __call__(self, qkv: Tensor) -> None:
        self._op(qkv, self.q_weight, self.k_weight, self.eps, *self._sizes)


class Rotary:
    """Rotary position embedding with one table for the whole model.

    `table` [positions, rotary_dim]: cosines, then sines, float32. `neox`: pairs (j, j + rotary_dim/2),
    else (2j, 2j + 1).
    """

    def __init__(self, context: ModelContext, table: Tensor, head_dim: int, neox: bool) -> None:
        self._op = context.ops.fused_rotary_position_encoding
        self.table = table
        self._head_dim = head_dim
        self.neox = neox

    def __call__(self, q: Tensor, k: Tensor, positions: Tensor) -> None:
        self._op(q, k, positions, self.table, self._head_dim, self.neox)


class Attention:
    """x + W_o softmax(q k^T) v with q, k, v of norm(x), rotary positions and grouped keys; the sizes are
    those of `backend.spec`.

    `qk_norm`: epsilon of the head norms, None for none. Norms, rotation and cache write are one call
    where the device has a kernel for it and the backend lets others write; attention as well where the
    backend can.
    """

    def __init__(
        self,
        context: ModelContext,
        scratch: Scratch,
        hidden_size: int,
        backend: AttentionBackend,
        rotary: Rotary,
        prefix: str,
        *,
        qkv_bias: bool = False,
        o_bias: bool = False,
        qk_norm: float | None = None,
    ) -> None:
        spec = backend.spec
        dim, heads, groups = spec.head_dim, spec.num_heads, spec.num_kv_heads
        q_size, kv_size = heads * dim, groups * dim
        rows = [(f"{prefix}.q_proj", q_size), (f"{prefix}.k_proj", kv_size), (f"{prefix}.v_proj", kv_size)]
        self.backend = backend
        self.rotary = rotary
        fused = context.ops.provides("rope_and_cache")
        self._rope_and_cache = context.ops.rope_and_cache if fused else None
        self.qkv = Linear(context, hidden_size, rows, bias=qkv_bias)
        self.o = Linear(context, q_size, [(f"{prefix}.o_proj", hidden_size)], bias=o_bias)
        self.norm = None
        if qk_norm is not None:
            self.norm = HeadNorm(context, prefix, q_size, kv_size, dim, qk_norm)
        self._qkv = scratch.buffer("qkv", (q_size + 2 * kv_size,), context.activation_dtype)
        self._q = self._qkv.heads(0, heads, dim)
        self._k = self._qkv.heads(q_size, groups, dim)
        self._v = self._qkv.heads(q_size + kv_size, groups, dim)
        self._mixed = scratch.buffer("mixed", (heads, dim), context.activation_dtype)
        self._mixed_rows = self._mixed.flat()

    def layers(self) -> Iterator[Weighted]:
        yield from (self.qkv, self.o)
        if self.norm is not None:
            yield self.norm

    def __call__(
        self, residual: Residual, norm: RMSNorm, positions: Tensor, plan: Any, cache: KVCache
    ) -> None:
        n = residual.rows
        qkv, mixed = self._qkv.rows(n), self._mixed.rows(n)
        self.qkv.normed(residual, norm, qkv)
        if not self._fused(qkv, positions, plan, cache, mixed):
            self._in_turn(qkv, positions, plan, cache, mixed)
        self.o.onto(self._mixed_rows.rows(n), residual)

    def _fused(self, qkv: Tensor, positions: Tensor, plan: Any, cache: KVCache, mixed: Tensor) -> bool:
        """False if there is no such way."""
        norm, rotary = self.norm, self.rotary
        weights = (None, None, 0.0) if norm is None else (norm.q_weight, norm.k_weight, norm.eps)
        heads = PackedRotary(rotary.table, rotary.neox, *weights)
        if self.backend.run_packed(plan, qkv, positions, heads, cache, mixed):
            return True
        if self._rope_and_cache is None or (to := self.backend.destination(plan, cache)) is None:
            return False
        write = (to.key, to.value, to.slot_mapping)
        self._rope_and_cache(qkv, positions, rotary.table, *weights, *write, rotary.neox)
        self.backend.attend(plan, self._q.rows(qkv.shape[0]), cache, mixed)
        return True

    def _in_turn(self, qkv: Tensor, positions: Tensor, plan: Any, cache: KVCache, mixed: Tensor) -> None:
        n = qkv.shape[0]
        q, k, v = self._q.rows(n), self._k.rows(n), self._v.rows(n)
        if self.norm is not None:
            self.norm(qkv)
        self.rotary(q, k, positions)
        self.backend.run(plan, q, k, v, cache, mixed)
