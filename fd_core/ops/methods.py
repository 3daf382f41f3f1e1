"""Attention backends and quantisation methods on anybody's tensors, as `call.py` does it for ops.

linear = GuestQuant(Method(device, platform, ops), session)
packed = linear.process_weights(spec, {"weight": their_weight})
y = linear.apply(x, packed, spec.out_features)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fd_core.api.attention import AttentionBackend, AttentionBatch, AttentionSpec, KVCache
from fd_core.api.quant import LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy
from fd_core.host.errors import UnsupportedOpError
from fd_core.host.session import current_session
from fd_core.layers.attention_select import select_attention
from fd_core.ops.call import on_device
from fd_core.ops.guest import allocator, exporter
from fd_core.ops.stream import on_guests_stream

if TYPE_CHECKING:
    from fd_core.host.session import Session

_BATCH = ("cu_seqlens_q", "seq_lens", "block_table", "slot_mapping")


def new_like(example: Any, spec: TensorSpec, session: Session) -> tuple[Any, Tensor]:
    """A tensor of `example`'s library on the session's device, as it is and as ours."""
    device = session.device.device
    made = allocator(example, session.platform, device)(spec)
    view = on_device("result", made, session, True)
    return exporter(example)(made) if isinstance(made, Tensor) else made, view


@dataclass(frozen=True)
class GuestAttention:
    """A backend whose `plan` and `run` take any library's tensors."""

    backend: AttentionBackend
    session: Session

    @classmethod
    def select(
        cls, spec: AttentionSpec, name: str | None = None, session: Session | None = None
    ) -> GuestAttention:
        """The session's best backend for `spec`, or the one called `name`."""
        opened = session or current_session()
        chosen = select_attention(spec, opened.device, opened.attention_backends, name)
        return cls(chosen(spec, opened.device, opened.ops), opened)

    def cache(self, example: Any, blocks: int) -> tuple[Any, Any]:
        """Pools for keys and values in the backend's layout, uninitialised, of `example`'s library."""
        layout = type(self.backend).kv_layout(self.backend.spec)
        spec = TensorSpec(layout.pool_shape(blocks), layout.dtype)
        return new_like(example, spec, self.session)[0], new_like(example, spec, self.session)[0]

    def plan(self, batch: AttentionBatch) -> Any:
        """Once per step; the batch's lists may be of any library."""
        ours: dict[str, Any] = {
            name: on_device(f"batch.{name}", getattr(batch, name), self.session) for name in _BATCH
        }
        with on_guests_stream((batch.seq_lens,), self.session.device.device):
            return self.backend.plan(replace(batch, **ours))

    def run(
        self,
        plan: Any,
        q: Any,  # [tokens, heads, head_dim]
        k: Any,  # [tokens, kv_heads, head_dim]
        v: Any,  # [tokens, kv_heads, head_dim]
        cache: tuple[Any, Any],
        out: Any = None,
        *,
        sinks: Any = None,
    ) -> Any:
        """`AttentionBackend.run`; the caches are changed in place. Returns `out`, made where it is None."""
        rows, keys, values = (on_device(n, t, self.session) for n, t in (("q", q), ("k", k), ("v", v)))
        pools = KVCache(*(on_device("cache", pool, self.session, True) for pool in cache))
        out, target = _output(q, out, rows.spec, self.session)
        extra = None if sinks is None else on_device("sinks", sinks, self.session)
        with on_guests_stream((q,), self.session.device.device):
            self.backend.run(plan, rows, keys, values, pools, target, sinks=extra)
        return out


@dataclass(frozen=True)
class GuestQuant:
    """A quantisation method whose weights and rows are any library's tensors."""

    method: QuantMethod
    session: Session

    @classmethod
    def named(cls, name: str, session: Session | None = None, **options: Any) -> GuestQuant:
        """The session's method called `name`. KeyError lists the names there are."""
        opened = session or current_session()
        if name not in opened.quant_methods:
            have = ", ".join(sorted(opened.quant_methods))
            raise KeyError(f"quantization: want one of {have}; have {name!r}")
        method = opened.quant_methods[name](opened.device, opened.platform, opened.ops, options)
        return cls(method, opened)

    def create_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        return self.method.create_weights(spec)

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Any]) -> Any:
        """Pack weights ([out, in], as `create_weights` says), wherever they lie.

        UnsupportedOpError, with the reasons, for a layer that the method does not do.
        """
        verdict = type(self.method).supports(spec, self.session.device)
        if not verdict.ok:
            raise UnsupportedOpError(f"quantization {self.method.name!r}: {verdict}", verdict)
        return self.method.process_weights(spec, {k: self._on_host(k, v) for k, v in weights.items()})

    def _on_host(self, name: str, value: Any) -> Tensor:
        tensor = on_device(name, value, self.session)
        return tensor if tensor.storage.on_host else from_numpy(self.session.platform.to_host(tensor))

    def apply(self, x: Any, packed: Any, out_features: int, bias: Any = None, out: Any = None) -> Any:
        """out [..., out_features] = x [..., in_features] @ W^T + bias; returns `out`, made where None."""
        rows = on_device("x", x, self.session)
        spec = TensorSpec((*rows.shape[:-1], out_features), rows.dtype)
        out, target = _output(x, out, spec, self.session)
        added = None if bias is None else on_device("bias", bias, self.session)
        with on_guests_stream((x,), self.session.device.device):
            self.method.apply(flat(rows), packed, added, flat(target))
        return out


def _output(example: Any, out: Any, spec: TensorSpec, session: Session) -> tuple[Any, Tensor]:
    return new_like(example, spec, session) if out is None else (out, on_device("out", out, session, True))


def flat(tensor: Tensor) -> Tensor:
    """[rows, last dimension]"""
    return tensor if tensor.ndim == 2 else tensor.view(-1, tensor.shape[-1])
