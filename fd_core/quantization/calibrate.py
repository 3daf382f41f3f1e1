"""A model run block by block over text, as it was and as far as it is rounded, for what its layers see."""

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
from fd_core.quantization.rounding import Moments, round_to_grid

Array = np.ndarray[Any, Any]
#: Tokens of a window of calibration text; what a step holds.
WINDOW = 1024


def worth_moments(method: QuantMethod) -> bool:
    """Whether weights are rounded by their effect on outputs."""
    grid = method.grid()
    return grid is not None and grid.by_effect


class Heard(Exception):
    """A layer has what it listened for; the rest of its block need not run."""

    def __init__(self, x: Array) -> None:
        super().__init__("inputs of a layer under conversion")
        self.x = x


class Watched(QuantMethod):
    """One layer of a model under conversion: packed by `target`, run by `plain` with the weights as they
    were or as they became. Unlike other methods an instance belongs to one layer.
    """

    def __init__(self, plain: QuantMethod, target: QuantMethod) -> None:
        super().__init__(plain.device, plain.platform, plain.ops)
        self.plain, self.target = plain, target
        self.spec: LinearSpec | None = None
        self.weight: Tensor | None = None
        #: Whether the next call is to raise Heard, and whether it is of the model as it was.
        self.listens, self.original = False, False
        self._before: Any = None
        self._after: Any = None

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

    def prepare(self) -> None:
        """Make the layer fit to run."""
        assert self.spec is not None
        assert self.weight is not None
        self._before = self._after = self.plain.process_weights(self.spec, {"weight": self.weight})

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        if self.listens:
            raise Heard(np.array(self.platform.to_host(x), np.float32))
        self.plain.apply(x, self._before if self.original else self._after, bias, out)

    def convert(self, moments: Moments | None = None) -> dict[str, Tensor]:
        """The stored tensors of the target, rounded by effect on inputs of these moments, if any."""
        assert self.spec is not None
        return self.target.store(self.spec, self.pack(self.spec, moments))

    def pack(self, spec: LinearSpec, moments: Moments | None) -> Any:
        """The weights as the target holds them; the layer runs on what they became, its activations as they
        are: one set of codes serves every method of a form."""
        assert self.weight is not None
        grid, weights = self.target.grid(), {"weight": self.weight}
        if moments is not None and grid is not None:
            rounded = round_to_grid(self.weight.numpy(), moments, grid)
            given = {"weight": rounded.weight, "scale": rounded.scale, "zero": rounded.zero}
            weights = {name: _host(array) for name, array in given.items() if array is not None}
            self._after = self.plain.process_weights(spec, {"weight": weights["weight"]})
        return self.target.process_weights(spec, weights)


class WatchedTable(Watched):
    """An embedding table under conversion: what the blocks see is looked up in the target's."""

    def pack(self, spec: LinearSpec, moments: Moments | None) -> Any:
        self._packed = super().pack(spec, moments)
        return self._packed

    def lookup(self, ids: Tensor, packed: Any, out: Tensor) -> None:
        self.target.lookup(ids, self._packed, out)


def _host(array: Array) -> Tensor:
    return from_numpy(np.ascontiguousarray(array, np.float32))


class Calibration:
    """Windows of token ids on their way through the blocks, of the model as it was and as it becomes."""

    def __init__(self, model: DecoderLM, windows: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._sums: list[Array] = []  # the residual sums [tokens, hidden] of each window
        context = model.context
        for ids in windows:
            shape = (len(ids), model.config.hidden_size)
            row = context.platform.empty(TensorSpec(shape, context.activation_dtype))
            model.embed(context.platform.from_host(np.array(ids, np.int32)), row)
            self._sums.append(np.array(context.platform.to_host(row), np.float32))
        self._wanted = [sums.copy() for sums in self._sums]  # as it was
        self._block, self._layers = 0, list[Watched]()
        self._cache = self._make_cache()

    def _make_cache(self) -> KVCache:
        context = self._model.context
        layout = self._model.kv_layouts()[0]
        blocks = -(-WINDOW // context.block_size)
        key, value = (
            context.platform.empty(TensorSpec(layout.pool_shape(blocks), layout.dtype)) for _ in "kv"
        )
        return KVCache(key, value)

    def begin(self, block: int, layers: Sequence[Watched]) -> None:
        """Go on with a block whose weights are loaded."""
        self._block, self._layers = block, list(layers)
        for layer in layers:
            layer.prepare()

    def moments(self, layer: Watched) -> Moments | None:
        """Of the inputs of one of the block's layers, those before it as they are by now; None: rounding to
        the nearest will do."""
        if not worth_moments(layer.target):
            return None
        assert layer.spec is not None
        found = Moments.zeros(layer.spec.in_features)
        for wanted, sums in zip(self._wanted, self._sums, strict=True):
            y, x = self._heard(layer, wanted, original=True), self._heard(layer, sums, original=False)
            if x is not None and y is not None:
                found.add(x, y)
        return found

    def _heard(self, layer: Watched, sums: Array, original: bool) -> Array | None:
        layer.listens = True
        try:
            self._run(sums, original)
        except Heard as heard:
            return heard.x
        finally:
            layer.listens = False
        return None

    def step(self) -> None:
        """Go on with what the block made of them."""
        self._wanted = [self._run(sums, original=True) for sums in self._wanted]
        self._sums = [self._run(sums, original=False) for sums in self._sums]

    def head_moments(self, head: Watched) -> Moments | None:
        """The same of the head's inputs, behind all blocks."""
        if not worth_moments(head.target):
            return None
        assert head.spec is not None
        found = Moments.zeros(head.spec.in_features)
        for wanted, sums in zip(self._wanted, self._sums, strict=True):
            found.add(self._normed(sums), self._normed(wanted))
        return found

    def _normed(self, sums: Array) -> Array:
        platform = self._model.context.platform
        x = platform.from_host(sums.astype(self._model.context.activation_dtype.numpy()))
        self._model.norm(x, x)
        return np.array(platform.to_host(x), np.float32)

    def _run(self, sums: Array, original: bool) -> Array:
        context, n = self._model.context, len(sums)
        for layer in self._layers:
            layer.original = original
        platform, kind = context.platform, context.activation_dtype
        residual = platform.from_host(sums.astype(kind.numpy()))
        x = platform.empty(TensorSpec(sums.shape, kind))
        self._model.run_block(self._block, x, residual, self._positions(n), self._batch(n), self._cache)
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
