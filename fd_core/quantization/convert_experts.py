"""Experts of a model under conversion: written one by one as they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fd_core.api.quant import ExpertMethod, ExpertSpec
from fd_core.api.tensor import Tensor, TensorSpec

#: (tensor name, expert, its part): where packed experts go.
Write = Callable[[str, int, np.ndarray[Any, Any]], None]


class ConvertedExperts(ExpertMethod):
    """Each expert is packed by `target`, to the nearest, and handed to `write`; nothing of it stays.

    `runs`: the layer is also held by `plain` and run so, for what the layers behind it see.
    """

    def __init__(self, plain: ExpertMethod, target: ExpertMethod, write: Write, runs: bool) -> None:
        super().__init__(target.method)
        self._plain, self._target = plain, target
        self._write, self._runs = write, runs

    @property
    def stored(self) -> bool:
        return False

    def stored_weights(self, spec: ExpertSpec) -> dict[str, TensorSpec]:
        """The tensors that are written, by name in the checkpoint."""
        return {f"{spec.prefix}.{name}": one for name, one in self._target.packed_weights(spec).items()}

    def packed_weights(self, spec: ExpertSpec) -> dict[str, TensorSpec]:
        return self._plain.packed_weights(spec) if self._runs else {}

    def pack(
        self, spec: ExpertSpec, expert: int, weights: Mapping[str, Tensor], packed: Mapping[str, Tensor]
    ) -> None:
        if self._runs:
            self._plain.pack(spec, expert, weights, packed)
        alone, platform = replace(spec, experts=1), self.method.platform
        stacks = {n: platform.empty(one) for n, one in self._target.packed_weights(alone).items()}
        self._target.pack(alone, 0, weights, stacks)
        for name, stack in stacks.items():
            self._write(f"{spec.prefix}.{name}", expert, platform.to_host(stack)[0])

    def apply(
        self,
        x: Tensor,
        ends: Tensor,
        owners: Tensor,
        spec: ExpertSpec,
        packed: Mapping[str, Tensor],
        out: Tensor,
    ) -> None:
        self._plain.apply(x, ends, owners, spec, packed, out)
