"""Mixture of experts: each token goes through the few feed-forward blocks that its router picks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.quant import ExpertSpec
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy
from fd_core.layers.coded import (
    Shard,
    coded_parameters,
    decoded,
    decoded_from_stacks,
    named_for_experts,
    stacked_parameters,
)
from fd_core.layers.context import ModelContext
from fd_core.layers.norm import RMSNorm
from fd_core.layers.residual import Residual
from fd_core.layers.scratch import Scratch
from fd_core.layers.weight import Parameter, Piece, Weighted, whole
from fd_core.quantization.codes import CodeFormat


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
    """All experts of a layer, packed by their quantisation method; gate and up are rows of one matrix.

    What is loaded at a time are its `parts`. As one layer its parameters are stacks of plain matrices
    [experts, in, out].
    """

    def __init__(self, context: ModelContext, sizes: ExpertSizes, prefix: str) -> None:
        kinds = (context.dtype, context.activation_dtype)
        self.spec = ExpertSpec(sizes.hidden, sizes.intermediate, sizes.experts, *kinds, prefix)
        self.method = context.quant.experts(self.spec)
        #: How the checkpoint holds codes, if it does and not as the method's own stacks.
        self.codes: CodeFormat | None = self.method.method.codes
        self._platform = context.platform
        self._packed: Mapping[str, Tensor] | None = None

    def parts(self) -> list[Weighted]:
        """The stacks of a converted checkpoint, or one expert after the other."""
        whole_layer = self.method.stored or (self.codes is not None and self.codes.joined)
        return [self] if whole_layer else [Expert(self, e) for e in range(self.spec.experts)]

    def parameters(self) -> dict[str, Parameter]:
        if self.method.stored:
            wanted = self.method.packed_weights(self.spec)
            return {name: whole(f"{self.spec.prefix}.{name}", one) for name, one in wanted.items()}
        if self.codes is not None:
            return stacked_parameters(self.codes, self.spec)
        experts = [Expert(self, e).parameters() for e in range(self.spec.experts)]
        return {name: _stacked([one[name] for one in experts]) for name in MATRICES}

    def load(self, values: Mapping[str, Tensor]) -> None:
        if self.method.stored:
            self._packed = self.method.adopt(self.spec, values)
            return
        for e in range(self.spec.experts):
            self.pack(e, self._one(e, values))

    def _one(self, expert: int, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.codes is not None:
            return decoded_from_stacks(self.codes, self.spec, expert, values)
        one = {MATRICES[name]: stack.numpy()[expert].T for name, stack in values.items()}
        return {name: from_numpy(np.ascontiguousarray(matrix)) for name, matrix in one.items()}

    def pack(self, expert: int, weights: Mapping[str, Tensor]) -> None:
        """One expert's matrices, as `ExpertMethod.pack` wants them; the first one makes the stacks."""
        if self._packed is None:
            wanted = self.method.packed_weights(self.spec)
            self._packed = {name: self._platform.empty(one) for name, one in wanted.items()}
        self.method.pack(self.spec, expert, weights, self._packed)

    def __call__(self, x: Tensor, ends: Tensor, owners: Tensor, out: Tensor) -> None:
        assert self._packed is not None
        self.method.apply(x, ends, owners, self.spec, self._packed, out)


#: Parameters of experts and their names in the method's specification.
MATRICES = {"gate_up": "gate_up_proj", "down": "down_proj"}


class Expert(Weighted):
    """The matrices of one expert on their way into the stacks."""

    def __init__(self, experts: Experts, index: int) -> None:
        self.experts, self.index = experts, index

    def parameters(self) -> dict[str, Parameter]:
        spec, codes = self.experts.spec, self.experts.codes
        prefix, inner = f"{spec.prefix}.{self.index}", spec.intermediate
        if codes is not None:
            return {
                f"{matrix}.{name}": parameter
                for matrix, shards in self._shards().items()
                for name, parameter in coded_parameters(codes, spec.matrices[matrix], shards).items()
            }
        gate_up = TensorSpec((2 * inner, spec.hidden), spec.dtype)
        rows = {"gate_proj": slice(0, inner), "up_proj": slice(inner, 2 * inner)}
        half = (inner, spec.hidden)
        halves = (Piece(f"{prefix}.{name}.weight", half, True, (part,)) for name, part in rows.items())
        down = TensorSpec((spec.hidden, inner), spec.dtype)
        return {
            "gate_up": Parameter(gate_up, tuple(halves)),
            "down": whole(f"{prefix}.down_proj.weight", down, linear=True),
        }

    def _shards(self) -> dict[str, list[Shard]]:
        """The checkpoint's matrices that are rows of one."""
        spec = self.experts.spec
        prefix, inner = f"{spec.prefix}.{self.index}", spec.intermediate
        halves = [(f"{prefix}.{name}", inner) for name in ("gate_proj", "up_proj")]
        return {"gate_up_proj": halves, "down_proj": [(f"{prefix}.down_proj", spec.hidden)]}

    def load(self, values: Mapping[str, Tensor]) -> None:
        codes = self.experts.codes
        if codes is None:
            self.experts.pack(self.index, {MATRICES[name]: value for name, value in values.items()})
            return
        weights: dict[str, Tensor] = {}
        for matrix, shards in self._shards().items():
            own = {n.removeprefix(f"{matrix}."): v for n, v in values.items() if n.startswith(f"{matrix}.")}
            given = decoded(codes, self.experts.spec.matrices[matrix], shards, own)
            weights |= named_for_experts(matrix, given)
        self.experts.pack(self.index, weights)


def _stacked(experts: Sequence[Parameter]) -> Parameter:
    """[experts, in, out] of matrices [out, in]."""
    first = experts[0].spec
    pieces = (
        replace(piece, index=(e, slice(None), *(piece.index or (slice(None),))), transposed=True)
        for e, one in enumerate(experts)
        for piece in one.pieces
    )
    return Parameter(TensorSpec((len(experts), *first.shape[::-1]), first.dtype), tuple(pieces))


class MixtureOfExperts:
    """x + sum over the chosen experts of score * expert(norm(x)), Shazeer et al. 2017.

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
        yield self.router
        yield from self.experts.parts()

    def __call__(self, residual: Residual, norm: RMSNorm) -> None:
        x = residual.normed(norm)
        self.run(x, x)
        residual.pending = True

    def run(self, x: Tensor, out: Tensor) -> None:
        """out [tokens, hidden] = the scored sum of the experts of x; `out` may be `x`."""
        n, sizes, ops = x.shape[0], self._sizes, self._ops
        scores, rows, results = self._scores.rows(n), self._rows.rows(n), self._results.rows(n)
        places, weights, ids = self._places.rows(n), self._weights.rows(n), self._ids.rows(n)
        owners, ends = self._owners.rows(n), self._ends
        self.router(x, scores)
        choice = (sizes.chosen, False, "", False)
        ops.moe_expert_dispatch(x, scores, None, None, *choice, rows, ends, places, weights, ids, owners)
        self.experts(rows, ends, owners, results)
        ops.moe_expert_reduce(results, weights, places, ids, None, sizes.normalise, 1.0, out)
