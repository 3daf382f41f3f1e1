"""What the engine asks of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from fd_core.api.attention import AttentionBatch, AttentionSpec, KVCache, KVLayout
from fd_core.api.tensor import Tensor
from fd_core.layers.context import ModelContext
from fd_core.layers.weight import Weighted
from fd_core.loader.load import load_weights
from fd_core.loader.source import WeightSource
from fd_core.models.config import ModelConfig
from fd_core.models.errors import ConfigError


class CausalLM(ABC):
    """A decoder over paged caches. All activation memory is made here, none in `forward`, so that a step
    can be captured; a token's result does not depend on what else is in the step."""

    def __init__(self, config: ModelConfig, context: ModelContext) -> None:
        problems = [*self.unsupported(config)]
        if problems:
            name = type(self).__name__
            raise ConfigError(f"{name}: this configuration is not supported: {'; '.join(problems)}")
        self.config = config
        self.context = context

    @classmethod
    def unsupported(cls, config: ModelConfig) -> Iterable[str]:
        """What `config` asks for that this model would get wrong: "key: want ..., have ..."."""
        return ()

    @abstractmethod
    def attention_specs(self) -> list[AttentionSpec]:
        """One per layer."""

    @abstractmethod
    def kv_layouts(self) -> list[KVLayout]:
        """The cache each layer's attention backend reads and writes."""

    @abstractmethod
    def forward(
        self,
        input_ids: Tensor,  # [tokens] int32 or int64
        positions: Tensor,  # [tokens] int32
        batch: AttentionBatch,
        caches: Sequence[KVCache],  # one per layer
    ) -> Tensor:
        """Final hidden states [tokens, hidden], normed: a view that the next call overwrites."""

    @abstractmethod
    def compute_logits(self, hidden: Tensor, indices: Tensor | None) -> Tensor:
        """Logits [rows, vocab] float32 of the rows `indices` [rows] int32 of `hidden` (None: all):
        likewise a view. At most `context.max_num_seqs` rows."""

    @abstractmethod
    def layers_with_weights(self) -> list[Weighted]:
        """Every layer that the loader fills, in loading order."""

    @classmethod
    def ignored_weights(cls, config: ModelConfig) -> Sequence[str]:
        """Patterns of checkpoint names that may be there and are not used."""
        return ()

    def load_weights(self, source: WeightSource, progress: bool | None = None) -> None:
        """Fill all layers; CheckpointError lists every name that is missing, unexpected or wrong."""
        ignored = self.ignored_weights(self.config)
        load_weights(self.layers_with_weights(), source, ignored=ignored, progress=progress)
