"""The quantisation interface: what the loader must bring, packing once, applying often."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import DType
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.api.verdict import Verdict


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """y[M, out] = x[M, in] @ W[out, in]^T + b[out]. `dtype` is the checkpoint's, `activation` that
    of x and y. `prefix` is the checkpoint name, for messages and per-layer choices."""

    in_features: int
    out_features: int
    bias: bool
    dtype: DType
    activation: DType
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """The experts of a layer: each is x -> W_down (silu(W_gate x) * W_up x), gate and up as one matrix.
    `dtype`, `activation` as in LinearSpec. `prefix`: the checkpoint name of all of them."""

    hidden: int
    intermediate: int
    experts: int
    dtype: DType
    activation: DType
    prefix: str = ""

    @property
    def matrices(self) -> dict[str, LinearSpec]:
        """Those of one expert by name: gate_up_proj [2 * intermediate, hidden], down_proj [hidden,
        intermediate]."""
        sizes = {
            "gate_up_proj": (self.hidden, 2 * self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }
        return {name: self._matrix(name, *size) for name, size in sizes.items()}

    def _matrix(self, name: str, depth: int, columns: int) -> LinearSpec:
        return LinearSpec(depth, columns, False, self.dtype, self.activation, f"{self.prefix}.{name}")


@dataclass(frozen=True, slots=True)
class Fusion:
    """What a product takes along (see `QuantMethod.apply_fused`).

    norm [in], eps: x passes an RMS norm with these weights first, as by the op `rms_norm`; None: none.
    gated: W's rows are gate and up, out_features / 2 each, and the result is silu(gate) * up, as by the op
    `swiglu`. add: the result is added to what `out` holds. Intermediate results are rounded as the ops
    one after another round them.
    """

    norm: Tensor | None = None
    eps: float = 0.0
    gated: bool = False
    add: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """The values a method can hold: (code - zero) * scale, `low` <= code <= `high`, with a scale for every
    `group` inputs of an output (0: for all of them). `zeros`: the least and the largest zero point, an
    integer for each scale; None: it is 0. `by_effect`: rounding weights by their effect on outputs is
    worth its time; else nearest is near enough."""

    low: int
    high: int
    group: int
    zeros: tuple[int, int] | None = None
    by_effect: bool = True


class QuantMethod(ABC):
    """Built once per model and device: `Method(device, platform, ops, config)`.

    A method with a `form` can be stored in a converted checkpoint: `stored_weights`, `store`, `adopt`.
    One whose `config` says is_quantized is given such tensors (`stored`). One with a `grid` alone is
    stored and read all the same, as codes: it is given weights that lie on its grid, with their scales.
    """

    name: ClassVar[str]
    priority: ClassVar[int] = 0
    #: Name of the layout of `stored_weights`; methods of equal form read each other's. Empty: none.
    form: ClassVar[str] = ""
    #: Whether `lookup` is there: then a table shared with the output head is kept once.
    has_lookup: ClassVar[bool] = False
    #: Up to how many rows of x `apply_fused` is worth asking.
    fused_rows: ClassVar[int] = 0

    def __init__(
        self, device: DeviceInfo, platform: Any, ops: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        self.device = device
        self.platform = platform
        self.ops = ops
        self.config = dict(config or {})
        #: Whether the checkpoint holds `stored_weights` instead of those of `create_weights`.
        self.stored = bool(self.form and self.config.get("is_quantized"))
        #: Set where methods are chosen: how the checkpoint holds codes (a CodeFormat of
        #: fd_core.quantization.codes) that `process_weights` is given multiplied out; None: it does not.
        self.codes: Any = None

    @classmethod
    @abstractmethod
    def supports(cls, spec: LinearSpec, device: DeviceInfo) -> Verdict:
        """Whether this method can run `spec` on `device`."""

    @abstractmethod
    def create_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        """Host tensors that the loader must provide, by parameter name (`weight` [out, in], ...)."""

    @abstractmethod
    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        """Pack the host tensors into the device's layout, once. The inputs may be freed after.

        A method with a `grid` also takes "scale" [out, groups] float32, and "zero" likewise where the
        grid has zero points: those to use, when the weights were already rounded to it.
        """

    @abstractmethod
    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        """out [M, out_features] = x [M, in_features] @ W^T + bias; allocates nothing."""

    def apply_fused(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor, fusion: Fusion) -> bool:
        """`apply` with its neighbours; out is half as wide where gated. False, with nothing done, where it
        does not take them along (optional, see `fused_rows`). `gated` and `add` never come together."""
        return False

    def grid(self) -> Grid | None:
        """The values weights are rounded to, for rounding them and for reading codes; None: only the method
        knows (optional)."""
        return None

    def stored_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        """Tensors of a converted checkpoint for `spec`, by parameter name (optional)."""
        raise NotImplementedError(f"quantization {self.name!r} has no stored form")

    def store(self, spec: LinearSpec, packed: Any) -> dict[str, Tensor]:
        """`packed` as the host tensors of `stored_weights` (optional)."""
        raise NotImplementedError(f"quantization {self.name!r} has no stored form")

    def adopt(self, spec: LinearSpec, stored: Mapping[str, Tensor]) -> Any:
        """What `process_weights` would return, over `stored`: in place where the device can. The tensors
        stay valid, and may be read-only (optional)."""
        raise NotImplementedError(f"quantization {self.name!r} has no stored form")

    def lookup(self, ids: Tensor, packed: Any, out: Tensor) -> None:
        """out [tokens, in] = rows `ids` of W (optional, see `has_lookup`)."""
        raise NotImplementedError(f"quantization {self.name!r} cannot be looked up")

    def experts(self) -> ExpertMethod | None:
        """How it holds and runs expert weights; None: it does not, and such layers are refused
        (optional)."""
        return None


class ExpertMethod(ABC):
    """The experts of mixture layers by a QuantMethod. Packed weights are stacks: the first dimension is
    the expert. A method with a `form` stores them in a converted checkpoint as they are packed."""

    def __init__(self, method: QuantMethod) -> None:
        self.method = method

    @property
    def stored(self) -> bool:
        """Whether the checkpoint holds the tensors of `packed_weights`."""
        return self.method.stored

    @abstractmethod
    def packed_weights(self, spec: ExpertSpec) -> dict[str, TensorSpec]:
        """The stacks in device memory, by name; in a converted checkpoint behind the prefix."""

    @abstractmethod
    def pack(
        self, spec: ExpertSpec, expert: int, weights: Mapping[str, Tensor], packed: Mapping[str, Tensor]
    ) -> None:
        """Put one expert's host matrices (`ExpertSpec.matrices`, [out, in]) into its place in the stacks.
        The inputs may be freed after. Where the method has a `grid`, "<matrix>.scale" and ".zero" may come
        along, as with `process_weights`."""

    @abstractmethod
    def apply(
        self,
        x: Tensor,
        ends: Tensor,
        owners: Tensor,
        spec: ExpertSpec,
        packed: Mapping[str, Tensor],
        out: Tensor,
    ) -> None:
        """out [R, hidden] = what each row's expert makes of x [R, hidden]; allocates nothing.

        Rows are sorted by expert: ends [experts] int64 inclusive numbers of rows, owners [R] int32.
        """

    def adopt(self, spec: ExpertSpec, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The stacks over a checkpoint's host tensors: in place where the device can. They stay valid,
        and may be read-only (optional)."""
        raise NotImplementedError(f"quantization {self.method.name!r} has no stored experts")
