"""Linear layers; several checkpoint matrices may be rows of one, so that one kernel call runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fd_core.api.quant import Fusion, LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.layers.coded import coded_parameters, decoded
from fd_core.layers.context import ModelContext
from fd_core.layers.norm import RMSNorm
from fd_core.layers.residual import Residual
from fd_core.layers.weight import Parameter, Piece, Weighted, whole

#: A matrix of the checkpoint: its name without the parameter's, and its output features.
Shard = tuple[str, int]


class Linear(Weighted):
    """y = x @ W^T + b with the rows of W taken from `shards` in order, run by its quantisation method.

    `table`: W is an embedding table, stored [out, in] whatever the layout of linear weights.
    `name`: what messages and per-layer choices call it, instead of the first shard's name.
    `method`: instead of the context's choice.
    """

    def __init__(
        self,
        context: ModelContext,
        in_features: int,
        shards: Sequence[Shard],
        *,
        bias: bool = False,
        table: bool = False,
        name: str = "",
        method: QuantMethod | None = None,
    ) -> None:
        self.shards = tuple(shards)
        self._table = table
        self.out_features = sum(rows for _, rows in self.shards)
        self.spec = LinearSpec(
            in_features,
            self.out_features,
            bias,
            context.dtype,
            context.activation_dtype,
            prefix=name or self.shards[0][0],
        )
        self._platform = context.platform
        self._method = context.quant(self.spec) if method is None else method
        self._fused_rows = self._method.fused_rows
        self._bias: Tensor | None = None
        self._packed: Any = None

    def parameters(self) -> dict[str, Parameter]:
        if self._method.codes is not None:
            found = coded_parameters(self._method.codes, self.spec, self.shards)
        elif self._method.stored:
            wanted = self._method.stored_weights(self.spec)
            found = {name: whole(f"{self.spec.prefix}.{name}", spec) for name, spec in wanted.items()}
        else:
            wanted = self._method.create_weights(self.spec)
            found = {name: self._parameter(name, spec) for name, spec in wanted.items()}
        if self.spec.bias:
            found["bias"] = self._parameter("bias", TensorSpec((self.out_features,), self.spec.activation))
        return found

    def _parameter(self, name: str, spec: TensorSpec) -> Parameter:
        linear = len(spec.shape) == 2 and not self._table
        if len(self.shards) == 1:
            return whole(f"{self.shards[0][0]}.{name}", spec, linear)
        pieces, row = [], 0
        for prefix, features in self.shards:
            rows = self._rows(name, spec, features)
            index = (slice(row, row + rows),)
            pieces.append(Piece(f"{prefix}.{name}", (rows, *spec.shape[1:]), linear, index))
            row += rows
        return Parameter(spec, tuple(pieces))

    def _rows(self, name: str, spec: TensorSpec, features: int) -> int:
        """Rows of a shard; a packed parameter may hold more or fewer rows than output features."""
        rows, rest = divmod(spec.shape[0] * features, self.out_features)
        if rest:
            raise ValueError(
                f"{self.spec.prefix}.{name}: {self._method.name} stores {spec.shape[0]} rows for "
                f"{self.out_features} outputs, which cannot be divided between {dict(self.shards)}"
            )
        return rows

    def load(self, values: Mapping[str, Tensor]) -> None:
        weights = {name: value for name, value in values.items() if name != "bias"}
        if self.spec.bias:
            self._bias = self._platform.from_host(values["bias"].numpy())
        if self._method.codes is not None:
            weights = decoded(self._method.codes, self.spec, self.shards, weights)
        take = self._method.adopt if self._method.stored else self._method.process_weights
        self._packed = take(self.spec, weights)

    @property
    def method(self) -> QuantMethod:
        return self._method

    @property
    def has_lookup(self) -> bool:
        return self._method.has_lookup

    def lookup(self, ids: Tensor, out: Tensor) -> None:
        """out [tokens, in] = rows `ids` of W."""
        self._method.lookup(ids, self._packed, out)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        self._method.apply(x, self._packed, self._bias, out)

    def normed(self, residual: Residual, norm: RMSNorm, out: Tensor) -> None:
        """out = W norm(residual) + b, the norm on the way where the method takes it."""
        direct = residual.rows <= self._fused_rows and not residual.pending
        if not (direct and self._fused(residual, residual.total, out, norm)):
            self._method.apply(residual.normed(norm), self._packed, self._bias, out)

    def gated(self, residual: Residual, norm: RMSNorm, out: Tensor) -> bool:
        """out [tokens, out / 2] = silu(gate) * up, where W's rows are gate and up, of norm(residual).
        False, and nothing done, where the method does not take the gate along."""
        if residual.rows > self._fused_rows or not residual.fuse:
            return False
        if residual.pending:
            return self._fused(residual, residual.normed(norm), out, gated=True)
        return self._fused(residual, residual.total, out, norm, gated=True)

    def onto(self, x: Tensor, residual: Residual) -> None:
        """W x + b becomes part of the residual: added at once where the method can."""
        if residual.rows <= self._fused_rows and self._fused(residual, x, residual.total, add=True):
            return
        self._method.apply(x, self._packed, self._bias, residual.part)
        residual.pending = True

    def _fused(
        self,
        residual: Residual,
        x: Tensor,
        out: Tensor,
        norm: RMSNorm | None = None,
        *,
        gated: bool = False,
        add: bool = False,
    ) -> bool:
        """False, and nothing done, where the method does not take along what is wanted."""
        if not residual.fuse:
            return False
        weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        fusion = Fusion(weight, eps, gated, add)
        return self._method.apply_fused(x, self._packed, self._bias, out, fusion)
