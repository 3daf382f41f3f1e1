"""How methods whose own order is no form of checkpoints are converted: as codes, in panels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fd_core.api.device import DeviceInfo
from fd_core.api.quant import ExpertMethod, ExpertSpec, Grid, LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy
from fd_core.api.verdict import Verdict
from fd_core.quantization.codes import Codes, parts_of, rounded_codes
from fd_core.quantization.config import UNQUANTIZED, QuantError
from fd_core.quantization.panels import Int4Panels, Int4ZeroPanels, Int8Panels, Panels
from fd_core.quantization.rounding import Steps, best_steps

Array = np.ndarray[Any, Any]


def storable(method: QuantMethod) -> QuantMethod:
    """The method, or one that stores its codes for it; QuantError where nobody can."""
    if method.form or method.name == UNQUANTIZED:
        return method
    grid = method.grid()
    if grid is None:
        raise QuantError(
            f"quantization {method.name!r}: want a method with a stored form or a grid, have neither; "
            "fix: load the 16-bit checkpoint with this method"
        )
    return StoredCodes(method, grid)


def storable_experts(experts: ExpertMethod) -> ExpertMethod:
    """The same for experts."""
    method = storable(experts.method)
    return StoredExperts(method) if isinstance(method, StoredCodes) else experts


def panels_for(grid: Grid) -> Panels:
    """The form that holds a grid's codes."""
    if grid.high - grid.low > 15:
        return Int8Panels(grid)
    return Int4ZeroPanels(grid) if grid.zeros else Int4Panels(grid)


class StoredCodes(QuantMethod):
    """`inner` under conversion: its weights as codes, and packed where it looks rows up."""

    def __init__(self, inner: QuantMethod, grid: Grid) -> None:
        self._inner, self._grid, self._panels = inner, grid, panels_for(grid)
        super().__init__(inner.device, inner.platform, inner.ops)

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._inner.name

    @property
    def form(self) -> str:  # type: ignore[override]
        return self._panels.name

    @property
    def has_lookup(self) -> bool:  # type: ignore[override]
        return self._inner.has_lookup

    @classmethod
    def supports(cls, spec: LinearSpec, device: DeviceInfo) -> Verdict:
        raise NotImplementedError("chosen by the conversion, not by name")

    def create_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        return self._inner.create_weights(spec)

    def grid(self) -> Grid:
        return self._grid

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        """(codes, what `inner` packs of them, if it has lookups)."""
        codes = self.codes_of({name: tensor.numpy() for name, tensor in weights.items()})
        if not self.has_lookup:
            return codes, None
        given = {"weight": codes.weight(self._grid.group), "scale": codes.scale}
        if codes.zero is not None:
            given["zero"] = codes.zero.astype(np.float32)
        host = {name: from_numpy(np.ascontiguousarray(array)) for name, array in given.items()}
        return codes, self._inner.process_weights(spec, host)

    def codes_of(self, given: Mapping[str, Array]) -> Codes:
        """Of a weight, to the nearest where no scales come with it."""
        wide = {name: np.asarray(array, np.float32) for name, array in given.items()}
        if "scale" not in wide:
            wide.update(nearest_steps(wide["weight"], self._grid))
        return rounded_codes(wide["weight"], wide["scale"], wide.get("zero"), self._grid)

    def stored_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        return self._panels.tensors(spec.out_features, spec.in_features)

    def store(self, spec: LinearSpec, packed: Any) -> dict[str, Tensor]:
        return self.encoded(packed[0])

    def encoded(self, codes: Codes) -> dict[str, Tensor]:
        """The tensors of `stored_weights`."""
        return {name: from_numpy(array) for name, array in self._panels.encode(codes).items()}

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        self._inner.apply(x, packed[1], bias, out)

    def lookup(self, ids: Tensor, packed: Any, out: Tensor) -> None:
        self._inner.lookup(ids, packed[1], out)


class StoredExperts(ExpertMethod):
    """Experts under conversion: each matrix as `method` stores it."""

    method: StoredCodes

    def packed_weights(self, spec: ExpertSpec) -> dict[str, TensorSpec]:
        return {
            f"{matrix}.{name}": TensorSpec((spec.experts, *one.shape), one.dtype)
            for matrix, linear in spec.matrices.items()
            for name, one in self.method.stored_weights(linear).items()
        }

    def pack(
        self, spec: ExpertSpec, expert: int, weights: Mapping[str, Tensor], packed: Mapping[str, Tensor]
    ) -> None:
        for matrix in spec.matrices:
            codes = self.method.codes_of({"weight": weights[matrix].numpy()})
            for name, tensor in self.method.encoded(codes).items():
                packed[f"{matrix}.{name}"].select(expert).copy_from(tensor)

    def apply(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("run by plain experts while they are converted")


def nearest_steps(weight: Array, grid: Grid) -> dict[str, Array]:
    """Scales and zero points [out, groups] for rounding to the nearest. Int8: absmax / 127. Int4: of the
    least squared error, errors of large weights counting for more."""
    if not grid.by_effect:
        return {"scale": np.abs(weight).max(1, keepdims=True, initial=0) / np.float32(grid.high)}

    def steps(part: slice) -> Steps:
        group = np.ascontiguousarray(weight[:, part].T)
        root = np.sqrt(np.mean(np.square(group), 0))
        return best_steps(group, 1 + np.abs(group) / np.where(root > 0, root, 1), grid)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(steps, [part for part, _ in parts_of(weight.shape[1], grid.group)]))
    scale, zero = (np.stack([getattr(one, name) for one in found], 1) for name in ("scale", "zero"))
    return {"scale": scale, "zero": zero} if grid.zeros else {"scale": scale}
