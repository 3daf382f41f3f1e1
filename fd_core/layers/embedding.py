"""Token embedding and the output head, which may share the table."""

from __future__ import annotations

from collections.abc import Mapping

from fd_core.api.quant import LinearSpec
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.layers.context import ModelContext
from fd_core.layers.linear import Linear
from fd_core.layers.weight import Parameter, Weighted, whole


class Embedding(Weighted):
    """Rows of a table [vocabulary, hidden] in the checkpoint's type, read into activations."""

    weight: Tensor

    def __init__(self, context: ModelContext, vocab_size: int, hidden_size: int, prefix: str) -> None:
        self._platform = context.platform
        self._ops = context.ops
        self._spec = TensorSpec((vocab_size, hidden_size), context.dtype)
        self._name = f"{prefix}.weight"

    def parameters(self) -> dict[str, Parameter]:
        return {"weight": whole(self._name, self._spec)}

    def load(self, values: Mapping[str, Tensor]) -> None:
        self.weight = self._platform.from_host(values["weight"].numpy())

    def __call__(self, ids: Tensor, out: Tensor) -> None:
        self._ops.embedding(ids, self.weight, out)


class SharedEmbedding(Embedding):
    """Looks tokens up in the output head's weights, where these are the table and kept packed."""

    def __init__(
        self, context: ModelContext, vocab_size: int, hidden_size: int, prefix: str, head: Linear
    ) -> None:
        super().__init__(context, vocab_size, hidden_size, prefix)
        self._head = head

    def parameters(self) -> dict[str, Parameter]:
        return {}

    def load(self, values: Mapping[str, Tensor]) -> None:
        return None

    def __call__(self, ids: Tensor, out: Tensor) -> None:
        self._head.lookup(ids, out)


class PackedEmbedding(Embedding):
    """A table of its own in a quantisation method's weights, as `table` holds them."""

    def __init__(self, context: ModelContext, vocab_size: int, prefix: str, table: Linear) -> None:
        super().__init__(context, vocab_size, table.spec.in_features, prefix)
        self.table = table

    def parameters(self) -> dict[str, Parameter]:
        return self.table.parameters()

    def load(self, values: Mapping[str, Tensor]) -> None:
        self.table.load(values)

    def __call__(self, ids: Tensor, out: Tensor) -> None:
        self.table.lookup(ids, out)


def own_table(context: ModelContext, vocab_size: int, hidden_size: int, prefix: str) -> Embedding:
    """The embedding of a model whose head has weights of its own, as the context's method wants it."""
    kinds = (context.dtype, context.activation_dtype)
    method = context.quant.table(LinearSpec(hidden_size, vocab_size, False, *kinds, prefix))
    if method is None:
        return Embedding(context, vocab_size, hidden_size, prefix)
    table = Linear(context, hidden_size, [(prefix, vocab_size)], table=True, method=method)
    return PackedEmbedding(context, vocab_size, prefix, table)
