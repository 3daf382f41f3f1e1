"""Mixture of experts: each token goes through the few feed-forward blocks that its router picks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fd_core.api import dtype as dt
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.layers.context import ModelContext
from fd_core.layers.scratch import Scratch
from fd_core.layers.weight import Parameter, Piece, Weighted, whole


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """`chosen` experts of `experts` per token. `normalise`: their weights are divided by their sum."""

    hidden: int
    intermediate: int
    experts: int
    chosen: int
    normalise: bool


class Router(Weighted):
    """Scores of all experts, float32. Never quantised: it is small and decides everything."""

    weight: Tensor

    def __init__(self, context: ModelContext, sizes: ExpertSizes, prefix: str) -> None:
        self._platform = context.platform
        self._linear = context.ops.linear
        self._spec = TensorSpec((sizes.experts, sizes.hidden), context.dtype)
        self._name = f"{prefix}.weight"

    def parameters(self) -> dict[str, Parameter]:
        return {"weight": whole(self._name, self._spec, linear=True)}

    def load(self, values: Mapping[str, Tensor]) -> None:
        self.weight = self._platform.from_host(values["weight"].numpy())

    def __call__(self, x: Tensor, scores: Tensor) -> None:
        self._linear(x, self.weight, None, scores)


class Experts(Weighted):
    """All experts' matrices, stacked as [experts, in, out]; gate and up are columns of one."""

    gate_up: Tensor
    down: Tensor

    def __init__(self, context: ModelContext, sizes: ExpertSizes, prefix: str) -> None:
        self._platform = context.platform
        self._dtype = context.dtype
        self._sizes = sizes
        self._prefix = prefix

    def parameters(self) -> dict[str, Parameter]:
        n, hidden, inner = self._sizes.experts, self._sizes.hidden, self._sizes.intermediate
        gate_up = TensorSpec((n, hidden, 2 * inner), self._dtype)
        down = TensorSpec((n, inner, hidden), self._dtype)
        columns = {"gate_proj": slice(0, inner), "up_proj": slice(inner, 2 * inner)}
        halves = (self._piece(e, name, (inner, hidden), c) for e in range(n) for name, c in columns.items())
        downs = (self._piece(e, "down_proj", (hidden, inner), slice(None)) for e in range(n))
        return {"gate_up": Parameter(gate_up, tuple(halves)), "down": Parameter(down, tuple(downs))}

    def _piece(self, expert: int, name: str, shape: tuple[int, int], columns: slice) -> Piece:
        index = (expert, slice(None), columns)
        return Piece(f"{self._prefix}.{expert}.{name}.weight", shape, True, index, transposed=True)

    def load(self, values: Mapping[str, Tensor]) -> None:
        self.gate_up = self._platform.from_host(values["gate_up"].numpy())
        self.down = self._platform.from_host(values["down"].numpy())


class MixtureOfExperts:
    """out = sum over the chosen experts of score * expert(x), Shazeer et al. 2017.

    Tokens are copied into rows sorted by expert, each expert runs over its rows, and a token's results
    are summed in the order of its scores, so that nothing depends on the other tokens of the step.
    """

    def __init__(self, context: ModelContext, scratch: Scratch, sizes: ExpertSizes, prefix: str) -> None:
        self._ops = context.ops
        self._sizes = sizes
        self.router = Router(context, sizes, f"{prefix}.gate")
        self.experts = Experts(context, sizes, f"{prefix}.experts")
        kind, chosen = context.activation_dtype, sizes.chosen
        self._scores = scratch.buffer("scores", (sizes.experts,), dt.float32)
        self._rows = scratch.buffer("expert_in", (chosen, sizes.hidden), kind).merged()
        self._results = scratch.buffer("expert_out", (chosen, sizes.hidden), kind).merged()
        self._places = scratch.buffer("expert_places", (chosen,), dt.int32).columns()
        self._weights = scratch.buffer("expert_weights", (chosen,), dt.float32)
        self._ids = scratch.buffer("expert_ids", (chosen,), dt.int32)
        self._owners = scratch.buffer("expert_owners", (chosen,), dt.int32).merged()
        self._ends = context.platform.empty(TensorSpec((sizes.experts,), dt.int64))

    def layers(self) -> Iterator[Weighted]:
        yield from (self.router, self.experts)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        n, sizes, ops = x.shape[0], self._sizes, self._ops
        scores, rows, results = self._scores.rows(n), self._rows.rows(n), self._results.rows(n)
        places, weights, ids = self._places.rows(n), self._weights.rows(n), self._ids.rows(n)
        owners, ends = self._owners.rows(n), self._ends
        self.router(x, scores)
        choice = (sizes.chosen, False, "", False)
        ops.moe_expert_dispatch(x, scores, None, None, *choice, rows, ends, places, weights, ids, owners)
        matrices = (self.experts.gate_up, self.experts.down, None, None, None, None)
        ops.moe_expert_ffn(rows, ends, *matrices, owners, "none", False, results)
        ops.moe_expert_reduce(results, weights, places, ids, None, sizes.normalise, 1.0, out)
