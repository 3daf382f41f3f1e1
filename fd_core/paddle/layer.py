"""The base of Paddle layers over a layer of the engine.

The weights are Paddle parameters, in Paddle's layout (linear matrices [in, out]), so that state
dictionaries, `.pdparams` and Paddle's own tools see an ordinary layer. What the kernels read is packed from
them by the engine's layer: at the first call, and again after the parameters were changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle

from fd_core.api.tensor import Shape, Tensor, from_numpy
from fd_core.layers.weight import Parameter, Weighted
from fd_core.ops.stream import on_guests_stream
from fd_core.paddle.context import LayerContext
from fd_core.paddle.tensors import Array, from_array, host_array, name_of, view


def turned(parameter: Parameter) -> bool:
    """Whether Paddle stores it the other way round: [in, out] for our [out, in]."""
    first = parameter.pieces[0]
    return first.linear and not first.transposed and len(parameter.spec.shape) == 2


class EngineLayer(paddle.nn.Layer):  # type: ignore[misc]
    """`engine` says which parameters there are and takes them over."""

    engine: Any

    def __init__(self, context: LayerContext, engine: Weighted) -> None:
        super().__init__()
        self.context = context
        self.engine = engine
        self.declared = engine.parameters()
        self._stale = True
        self._seen: tuple[Any, ...] = ()
        for name, parameter in self.declared.items():
            self.add_parameter(name, self._make(parameter))

    def _make(self, parameter: Parameter) -> Any:
        shape = parameter.spec.shape[::-1] if turned(parameter) else parameter.spec.shape
        kind = name_of(parameter.spec.dtype)
        zero = paddle.nn.initializer.Constant(0.0)
        made = self.create_parameter(list(shape), dtype=kind, default_initializer=zero)
        made.stop_gradient = True
        plain: Callable[..., Any] = made.set_value

        def set_value(value: Any) -> Any:
            """What state dictionaries are loaded with; it leaves no other trace on a parameter."""
            self._stale = True
            return plain(value)

        made.set_value = set_value
        return made

    def fill(self, name: str, array: Array) -> None:
        """Set a parameter from a host array in the engine's layout ([out, in])."""
        wanted = self.declared[name]
        value = np.ascontiguousarray(array.T) if turned(wanted) else array
        getattr(self, name).set_value(from_array(value))

    def array(self, name: str) -> Array:
        """A parameter as a host array in the engine's layout."""
        found = host_array(getattr(self, name), self.context.session)
        return found.T if turned(self.declared[name]) else found

    def ready(self) -> None:
        """Pack the parameters if they were changed since the last time.

        Changes through `set_value`, `set_state_dict` and Paddle's in-place operators are noticed; after
        others (writing through `data_ptr`) call `pack`.
        """
        parameters = [getattr(self, name) for name in self.declared]
        seen = tuple((p.data_ptr(), p.inplace_version) for p in parameters)
        if self._stale or seen != self._seen:
            self.pack()
            self._seen = seen

    def pack(self) -> None:
        self.engine.load({name: self._packable(name) for name in self.declared})
        self._stale = False

    def _packable(self, name: str) -> Tensor:
        return from_numpy(np.array(self.array(name), order="C"))

    def run(self, call: Callable[..., None], x: paddle.Tensor, columns: Shape, kind: str = "") -> Any:
        """out [rows, *columns] of `call(x, out)` on Paddle's current stream."""
        self.ready()
        out = paddle.empty([x.shape[0], *columns], dtype=kind or x.dtype)
        session = self.context.session
        with on_guests_stream((x,), session.device.device):
            call(view(x, session), view(out, session, "out"))
        return out


def rows_of(x: paddle.Tensor) -> paddle.Tensor:
    """[rows, last dimension]"""
    return x if x.ndim == 2 else x.reshape([-1, x.shape[-1]])
