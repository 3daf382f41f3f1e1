"""The base of Paddle layers over a layer of the engine.

The weights are Paddle parameters, in Paddle's layout (linear matrices [in, out]), so that state
dictionaries, `.pdparams` and Paddle's own tools see an ordinary layer. What the kernels read is packed from
them by the engine's layer: at the first call, and again after the parameters were changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paddle
from paddle.jit.sot.psdb import fallback

from fd_core.api.tensor import Shape, Tensor, from_numpy
from fd_core.host.session import Session
from fd_core.layers.weight import Parameter, Weighted
from fd_core.ops.stream import on_guests_stream
from fd_core.paddle.context import LayerContext
from fd_core.paddle.tensors import Array, from_array, host_array, name_of, view

#: (changed tensors, tensors that are only read) -> None, as in `in_place.py`.
Work = Callable[[list[Tensor], list[Tensor]], None]


def turned(parameter: Parameter) -> bool:
    """Whether Paddle stores it the other way round: [in, out] for our [out, in]."""
    first = parameter.pieces[0]
    return first.linear and not first.transposed and len(parameter.spec.shape) == 2


class Layer(paddle.nn.Layer):  # type: ignore[misc]
    """What all layers here share: in graphs that Paddle traces from sources a layer is taken as it is; the
    tracer of bytecode, which cannot look into it, is asked to run its caller eagerly."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fallback(recursive=True)
        return super().__call__(*args, **kwargs)


class EngineLayer(Layer):
    """`engine` says which parameters there are and takes them over."""

    engine: Any

    def __init__(self, context: LayerContext, engine: Weighted) -> None:
        super().__init__()
        self.context = context
        self.engine = engine
        self.declared = engine.parameters()
        self._stale = True
        self._seen: tuple[Any, ...] = ()
        self._held: dict[str, paddle.Tensor] = {}
        for name, parameter in self.declared.items():
            self._held[name] = self._make(parameter)
            self.add_parameter(name, self._held[name])

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

    def tensor_of(self, name: str) -> paddle.Tensor:
        """The parameter itself: while a graph is built, Paddle puts values of the graph in its place."""
        found = self._parameters[name]
        if not isinstance(found, paddle.pir.Value):
            self._held[name] = found
        return self._held[name]

    def fill(self, name: str, array: Array) -> None:
        """Set a parameter from a host array in the engine's layout ([out, in])."""
        wanted = self.declared[name]
        value = np.ascontiguousarray(array.T) if turned(wanted) else array
        self.tensor_of(name).set_value(from_array(value))

    def array(self, name: str) -> Array:
        """A parameter as a host array in the engine's layout."""
        found = host_array(self.tensor_of(name), self.context.session)
        return found.T if turned(self.declared[name]) else found

    def ready(self) -> None:
        """Pack the parameters if they were changed since the last time.

        Changes through `set_value`, `set_state_dict` and Paddle's in-place operators are noticed; after
        others (writing through `data_ptr`) call `pack`.
        """
        parameters = [self.tensor_of(name) for name in self.declared]
        seen = tuple((p.data_ptr(), p.inplace_version) for p in parameters)
        if self._stale or seen != self._seen:
            with paddle.base.dygraph.base.guard():  # also while a graph is built
                self.pack()
            self._seen = seen

    def pack(self) -> None:
        self.engine.load({name: self._packable(name) for name in self.declared})
        self._stale = False

    def _packable(self, name: str) -> Tensor:
        return from_numpy(np.array(self.array(name), order="C"))

    def run(self, call: Callable[..., None], x: paddle.Tensor, columns: Shape, kind: str = "") -> Any:
        """out [rows, *columns] of `call(x, out)`, also inside a graph that is being built."""
        self.ready()
        out = new_like(x, [x.shape[0], *columns], kind or x.dtype)
        return apply(self.context.session, lambda changed, read: call(read[0], changed[0]), [out], [x])[0]


def new_like(example: Any, shape: Sequence[int], kind: Any) -> Any:
    """Memory for a result, in the graph that `example` is a value of, or now."""
    if not isinstance(example, paddle.pir.Value):
        return paddle.empty(list(shape), dtype=kind)
    from fd_core.paddle.in_place import memory

    return memory(shape, kind)


def apply(session: Session, work: Work, changed: Sequence[Any], read: Sequence[Any]) -> list[Any]:
    """Do `work` on Paddle's tensors, on its current stream; on values of a graph, add it to the graph.

    Returns what stands for `changed` afterwards.
    """
    if isinstance(changed[0], paddle.pir.Value):
        return _in_graph(work, changed, read)
    with on_guests_stream(changed, session.device.device):
        work([view(t, session, "out") for t in changed], [view(t, session) for t in read])
    return list(changed)


def _in_graph(work: Work, changed: Sequence[Any], read: Sequence[Any]) -> list[Any]:
    from fd_core.paddle.in_place import call_in_place

    for value in changed:
        if -1 in value.shape:
            have = list(value.shape)
            raise ValueError(
                f"layer in a graph: want fixed shapes, have {have}; fix: no unknown dimensions"
            )
    return call_in_place(work, changed, read or [paddle.zeros([1])])  # it wants one of each


def rows_of(x: paddle.Tensor) -> paddle.Tensor:
    """[rows, last dimension]"""
    return x if x.ndim == 2 else x.reshape([-1, x.shape[-1]])
