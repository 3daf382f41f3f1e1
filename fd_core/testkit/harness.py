"""Runs a model without an engine: batches and caches built by hand, several sequences at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fd_core.api.attention import AttentionBatch, KVCache, KVLayout
from fd_core.api.dtype import DType, dtype
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.layers.context import ModelContext
from fd_core.loader.open import open_source
from fd_core.models.base import CausalLM
from fd_core.models.config import load_config
from fd_core.models.registry import resolve
from fd_core.quantization.config import parse_quantization
from fd_core.quantization.registry import QuantChooser

Array = np.ndarray[Any, Any]
BLOCK = 8


class Parts(Protocol):
    """What a model is built on; a `Session` has all of it."""

    @property
    def platform(self) -> Any: ...
    @property
    def device(self) -> Any: ...
    @property
    def ops(self) -> Any: ...
    @property
    def attention_backends(self) -> list[Any]: ...
    @property
    def quant_methods(self) -> dict[str, Any]: ...


def build(
    folder: Path,
    parts: Parts,
    *,
    weights: str | None = None,
    cache: str | None = None,
    max_num_tokens: int = 128,
    max_num_seqs: int = 128,
    **source: Any,
) -> CausalLM:
    """The model in `folder` with its weights; `weights` and `cache`: types other than the checkpoint's."""
    config = load_config(folder)
    kind = dtype(weights or config.dtype)
    wanted = parse_quantization(config.quantization_config, "", parts.quant_methods)
    context = ModelContext(
        platform=parts.platform,
        device=parts.device,
        ops=parts.ops,
        dtype=kind,
        cache_dtype=dtype(cache) if cache else kind,
        block_size=BLOCK,
        max_num_tokens=max_num_tokens,
        max_num_seqs=max_num_seqs,
        max_model_len=config.max_model_len,
        quant=QuantChooser(wanted, parts.quant_methods, parts.device, parts.platform, parts.ops),
        attention_backends=parts.attention_backends,
    )
    model = resolve(config.architectures)(config, context)
    source = {"config_layout": config.weight_layout, **source}
    model.load_weights(open_source(folder, **source), progress=False)
    return model


@dataclass
class Text:
    """A sequence: how many tokens are in the cache, and in which blocks."""

    length: int = 0
    blocks: list[int] = field(default_factory=list)


class Harness:
    """Caches for `blocks` blocks, handed out in a scattered order; sequences by any key."""

    def __init__(self, model: CausalLM, blocks: int = 64) -> None:
        self.model = model
        self.caches = [self._cache(layout, blocks) for layout in model.kv_layouts()]
        self._free = list(np.random.default_rng(1).permutation(blocks))
        self._texts: dict[object, Text] = {}

    def _cache(self, layout: KVLayout, blocks: int) -> KVCache:
        """Pools full of NaN bytes: what was never written must never count."""
        return KVCache(*(self._garbage(layout.pool_shape(blocks), layout.dtype) for _ in range(2)))

    def _garbage(self, shape: tuple[int, ...], kind: DType) -> Tensor:
        array = np.empty(shape, kind.numpy())
        array.reshape(-1).view(np.uint8)[...] = 0xFF
        pool = self.model.context.platform.empty(TensorSpec(shape, kind))
        pool.copy_from(self._device(array))
        return pool

    def _device(self, array: Array) -> Tensor:
        return self.model.context.platform.from_host(array)

    def step(self, work: Sequence[tuple[object, Sequence[int]]]) -> list[Array]:
        """Run one step over (sequence key, new tokens); logits of every new token, per sequence."""
        ids = np.array([t for _, tokens in work for t in tokens], np.int32)
        batch, positions = self._batch(work)
        device = self._device
        hidden = self.model.forward(device(ids), device(positions), batch, self.caches)
        rows = device(np.arange(len(ids), dtype=np.int32))
        logits = self.model.compute_logits(hidden, rows)
        found = self.model.context.platform.to_host(logits).copy()
        return np.split(found, np.cumsum([len(tokens) for _, tokens in work])[:-1])

    def _batch(self, work: Sequence[tuple[object, Sequence[int]]]) -> tuple[AttentionBatch, Array]:
        counts = [len(tokens) for _, tokens in work]
        places = [self._extend(key, n) for (key, _), n in zip(work, counts, strict=True)]
        texts = [self._texts[key] for key, _ in work]
        table = np.full((len(work), max(len(t.blocks) for t in texts) + 1), -1, np.int32)
        for row, text in zip(table, texts, strict=True):
            row[: len(text.blocks)] = text.blocks
        slots = [self._texts[key].blocks[p // BLOCK] * BLOCK + p % BLOCK
                 for (key, _), at in zip(work, places, strict=True) for p in at]  # fmt: skip
        lengths = [t.length for t in texts]
        batch = AttentionBatch(
            num_tokens=sum(counts),
            num_seqs=len(work),
            cu_seqlens_q=self._device(np.cumsum([0, *counts], dtype=np.int32)),
            seq_lens=self._device(np.array(lengths, np.int32)),
            block_table=self._device(table),
            slot_mapping=self._device(np.array(slots, np.int64)),
            max_query_len=max(counts),
            max_seq_len=max(lengths),
        )
        return batch, np.array([p for at in places for p in at], np.int32)

    def _extend(self, key: object, count: int) -> range:
        text = self._texts.setdefault(key, Text())
        start, text.length = text.length, text.length + count
        while len(text.blocks) * BLOCK < text.length:
            text.blocks.append(int(self._free.pop()))
        return range(start, text.length)

    def logits(self, key: object, ids: Sequence[int], chunks: Sequence[int] = ()) -> Array:
        """Logits of all of `ids`, in one step or in steps of the given sizes, the rest one by one."""
        sizes = list(chunks) + [1] * (len(ids) - sum(chunks)) if chunks else [len(ids)]
        cuts = np.cumsum([0, *sizes])
        parts = [self.step([(key, ids[a:b])])[0] for a, b in pairwise(cuts)]
        return np.concatenate(parts)

    def greedy(self, key: object, ids: Sequence[int], count: int) -> list[int]:
        out = [int(self.step([(key, ids)])[0][-1].argmax())]
        while len(out) < count:
            out.append(int(self.step([(key, out[-1:])])[0][-1].argmax()))
        return out
