"""A model run block by block over text, each block before and after rounding, for what its layers see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fd_core.api.attention import AttentionBatch, KVCache
from fd_core.api.device import DeviceInfo
from fd_core.api.quant import LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy
from fd_core.api.verdict import Verdict
from fd_core.models.decoder import DecoderLM
from fd_core.quantization.rounding import round_to_grid

Array = np.ndarray[Any, Any]
#: Tokens of a window of calibration text; what a step holds.
WINDOW = 1024


class Watched(QuantMethod):
    """One layer of a model under conversion: run on plain weights and listened to, then on `target`'s.

    Unlike other methods an instance belongs to one layer.
    """

    def __init__(self, plain: QuantMethod, target: QuantMethod) -> None:
        super().__init__(plain.device, plain.platform, plain.ops)
        self.plain, self.target = plain, target
        self.spec: LinearSpec | None = None
        self.weight: Tensor | None = None
        self.moments: Array | None = None
        self._runs: tuple[QuantMethod, Any] | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.target.name

    @classmethod
    def supports(cls, spec: LinearSpec, device: DeviceInfo) -> Verdict:
        raise NotImplementedError("chosen by the conversion, not by name")

    def create_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        return self.plain.create_weights(spec)

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        self.spec, self.weight = spec, weights["weight"]
        return None

    def listen(self) -> None:
        """Make the layer fit to run, and add up what it gets."""
        assert self.spec is not None
        assert self.weight is not None
        self._runs = (self.plain, self.plain.process_weights(self.spec, {"weight": self.weight}))
        if self.target.grid() is not None:
            self.moments = np.zeros((self.spec.in_features,) * 2, np.float32)

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        assert self._runs is not None
        if self.moments is not None:
            self.hear(self.platform.to_host(x))
        method, weights = self._runs
        method.apply(x, weights, bias, out)

    def hear(self, x: Array) -> None:
        """Inputs [tokens, in] that count."""
        if self.moments is not None:
            wide = x.astype(np.float32)
            self.moments += wide.T @ wide

    def convert(self) -> dict[str, Tensor]:
        """The stored tensors of the target; a layer that was listened to runs on the rounded weights."""
        assert self.spec is not None
        return self.target.store(self.spec, self.pack(self.spec))

    def pack(self, spec: LinearSpec) -> Any:
        """The weights as the target holds them."""
        assert self.weight is not None
        weights = {"weight": self.weight}
        grid = self.target.grid()
        if self.moments is not None and grid is not None:
            rounded, scales = round_to_grid(self.weight.numpy(), self.moments, grid)
            weights = {"weight": _host(rounded), "scale": _host(scales)}
        packed = self.target.process_weights(spec, weights)
        if self.moments is not None:  # with activations as they are: one set of codes for every method
            self._runs = (self.plain, self.plain.process_weights(spec, {"weight": weights["weight"]}))
            self.moments = None
        return packed


class WatchedTable(Watched):
    """An embedding table under conversion: what the blocks see is looked up in the target's."""

    def pack(self, spec: LinearSpec) -> Any:
        self._packed = super().pack(spec)
        return self._packed

    def lookup(self, ids: Tensor, packed: Any, out: Tensor) -> None:
        self.target.lookup(ids, self._packed, out)


def _host(array: Array) -> Tensor:
    return from_numpy(np.ascontiguousarray(array, np.float32))


class Calibration:
    """Windows of token ids on their way through the blocks."""

    def __init__(self, model: DecoderLM, windows: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._sums: list[Array] = []  # the residual sums [tokens, hidden] of each window
        context = model.context
        for ids in windows:
            shape = (len(ids), model.config.hidden_size)
            row = context.platform.empty(TensorSpec(shape, context.activation_dtype))
            model.embed(context.platform.from_host(np.array(ids, np.int32)), row)
            self._sums.append(np.array(context.platform.to_host(row), np.float32))
        self._cache = self._make_cache()

    def _make_cache(self) -> KVCache:
        context = self._model.context
        layout = self._model.kv_layouts()[0]
        blocks = -(-WINDOW // context.block_size)
        key, value = (
            context.platform.empty(TensorSpec(layout.pool_shape(blocks), layout.dtype)) for _ in "kv"
        )
        return KVCache(key, value)

    def run(self, block: int) -> list[Array]:
        """What the block makes of the sums so far; its layers hear their inputs."""
        return [self._run(block, sums) for sums in self._sums]

    def step(self, block: int) -> None:
        """Go on with what the block, now rounded, makes of them."""
        self._sums = self.run(block)

    def run_head(self, head: Watched) -> None:
        for sums in self._sums:
            head.hear(self._normed(sums))

    def _normed(self, sums: Array) -> Array:
        platform = self._model.context.platform
        x = platform.from_host(sums.astype(self._model.context.activation_dtype.numpy()))
        self._model.norm(x, x)
        return np.array(platform.to_host(x), np.float32)

    def _run(self, block: int, sums: Array) -> Array:
        context, n = self._model.context, len(sums)
        platform, kind = context.platform, context.activation_dtype
        residual = platform.from_host(sums.astype(kind.numpy()))
        x = platform.empty(TensorSpec(sums.shape, kind))
        self._model.run_block(block, x, residual, self._positions(n), self._batch(n), self._cache)
        out = platform.to_host(residual).astype(np.float32) + platform.to_host(x).astype(np.float32)
        return np.asarray(out)

    def _positions(self, n: int) -> Tensor:
        return self._model.context.platform.from_host(np.arange(n, dtype=np.int32))

    def _batch(self, n: int) -> AttentionBatch:
        put = self._model.context.platform.from_host
        blocks = -(-WINDOW // self._model.context.block_size)
        return AttentionBatch(
            num_tokens=n,
            num_seqs=1,
            cu_seqlens_q=put(np.array([0, n], np.int32)),
            seq_lens=put(np.array([n], np.int32)),
            block_table=put(np.arange(blocks, dtype=np.int32)[None]),
            slot_mapping=put(np.arange(n, dtype=np.int64)),
            max_query_len=n,
            max_seq_len=n,
        )
