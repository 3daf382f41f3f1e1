"""One block in every way to run it: the NumPy oracles, Paddle's dynamic and static graphs with and without
its compiler and device graphs, and our own eager and recorded steps. Each mode runs, or says why it cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from block import NAMES, arrays, block

from fd_core import ops
from fd_core.api.tensor import from_numpy
from fd_core.host.session import Session, current_session, open_session
from fd_core.ops.call import call
from fd_core.ops.catalogue import find

#: What a mode gives: hidden states, residual, and both caches after the step.
Results = list[np.ndarray[Any, Any]]
Mode = Callable[[Any, dict[str, Any]], Results]
SEEDS = (0, 1)


class Bound:
    """The ops of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return lambda *args: call(find(name), self._session, args, {})


def baseline(data: dict[str, Any]) -> Results:
    """The oracles, composed on NumPy arrays."""
    copies = {name: value.copy() for name, value in data.items()}
    hidden, residual = block(Bound(open_session("reference")), *copies.values())
    return [hidden, residual, copies["keys"], copies["values"]]


def on_paddle(paddle: Any, data: dict[str, Any], run: Callable[..., Any]) -> Results:
    tensors = {name: paddle.to_tensor(value) for name, value in data.items()}
    hidden, residual = run(*tensors.values())
    return [t.numpy() for t in (hidden, residual, tensors["keys"], tensors["values"])]


def plain(*tensors: Any) -> Any:
    return block(ops, *tensors)


def dynamic(paddle: Any, data: dict[str, Any]) -> Results:
    return on_paddle(paddle, data, plain)


def static(paddle: Any, data: dict[str, Any]) -> Results:
    return on_paddle(paddle, data, paddle.jit.to_static(step(), full_graph=True))


def static_by_bytecode(paddle: Any, data: dict[str, Any]) -> Results:
    """FastDeploy's level 1: one graph, traced from bytecode."""
    from paddle.jit.sot.utils import min_graph_size_guard

    with min_graph_size_guard(0):
        return on_paddle(paddle, data, paddle.jit.to_static(step(), full_graph=False))


def cinn(paddle: Any, data: dict[str, Any]) -> Results:
    if not paddle.is_compiled_with_cinn():
        pytest.skip("this Paddle was built without CINN")
    return on_paddle(paddle, data, paddle.jit.to_static(step(), full_graph=True, backend="CINN"))


def step() -> Any:
    """A function of its own for each `to_static`, with the names its tracer wants."""

    def run(
        x: Any, residual: Any, keys: Any, values: Any, decoder: Any, this: Any, sums: Any, table: Any,
        rotary: Any, norm: Any, qkv: Any, out: Any, post_norm: Any, up: Any, down: Any,
    ) -> Any:  # fmt: skip
        return block(
            ops,
            x,
            residual,
            keys,
            values,
            decoder,
            this,
            sums,
            table,
            rotary,
            norm,
            qkv,
            out,
            post_norm,
            up,
            down,
        )

    return run


def device_graph(make: Callable[[Any], Any]) -> Mode:
    """Recorded by Paddle on the GPU, from eager calls, a static graph or a compiled one."""

    def run(paddle: Any, data: dict[str, Any]) -> Results:
        if not paddle.is_compiled_with_cuda():
            pytest.skip("this Paddle was built without GPU support: it records no device graphs")
        tensors = {name: paddle.to_tensor(value) for name, value in data.items()}
        kept = {name: tensors[name].clone() for name in ("residual", "keys", "values")}
        call = make(paddle)
        call(*tensors.values())  # what a first call allocates is not recorded
        for name, value in kept.items():
            tensors[name].copy_(value, True)
        graph = paddle.device.cuda.graphs.CUDAGraph()
        graph.capture_begin()
        hidden, residual = call(*tensors.values())
        graph.capture_end()
        graph.replay()
        return [t.numpy() for t in (hidden, residual, tensors["keys"], tensors["values"])]

    return run


def compiled(paddle: Any) -> Any:
    if not paddle.is_compiled_with_cinn():
        pytest.skip("this Paddle was built without CINN")
    return paddle.jit.to_static(step(), full_graph=True, backend="CINN")


def own_eager(paddle: Any, data: dict[str, Any]) -> Results:
    session = current_session()
    tensors = {name: session.platform.from_host(value.copy()) for name, value in data.items()}
    hidden, residual = block(Bound(session), *tensors.values())
    found = (hidden, residual, tensors["keys"], tensors["values"])
    return [np.array(session.platform.to_host(t)) for t in found]


MODES: dict[str, Mode] = {
    "dynamic": dynamic,
    "static": static,
    "static by bytecode": static_by_bytecode,
    "CINN": cinn,
    "dynamic + device graph": device_graph(lambda paddle: plain),
    "static + device graph": device_graph(lambda paddle: paddle.jit.to_static(step(), full_graph=True)),
    "CINN + device graph": device_graph(compiled),
    "our eager": own_eager,
}


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_mode_agrees_with_the_oracles(paddle: Any, name: str, seed: int) -> None:
    """Seven ops of float32 sums over at most 24 terms near 1: 1e-5 relative each, and as much absolute."""
    data = arrays(seed)
    assert tuple(data) == NAMES
    for got, want in zip(MODES[name](paddle, data), baseline(data), strict=True):
        np.testing.assert_allclose(got, want, rtol=7e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in MODES if n not in ("dynamic", "CINN", "CINN + device graph")])
def test_modes_that_run_the_same_kernels_agree_bit_for_bit(paddle: Any, name: str) -> None:
    data = arrays(2)
    for got, want in zip(MODES[name](paddle, data), dynamic(paddle, data), strict=True):
        np.testing.assert_array_equal(got, want)


class TestRecorded:
    """Our own recorded steps: where the session's device records, and on the simulated one."""

    @pytest.fixture(params=["simulated", "current"])
    def session(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Session:
        if request.param == "current":
            return current_session()
        from fd_core.host.freeze import freeze
        from fd_core.host.ledger import Ledger
        from fd_core.ops.catalogue import catalogue
        from fd_core.testkit.simulated import SimulatedPlatform, kernel

        platform = SimulatedPlatform()
        device = platform.open(0)
        kernels = [kernel(definition) for definition in catalogue().values()]
        table = freeze(catalogue(), kernels, device, policy="error")
        return Session(platform, device, table, [], {}, Ledger(table, {}))

    def test_replays_on_new_data(self, session: Session) -> None:
        platform, first, second = session.platform, arrays(0), arrays(1)
        tensors = {name: platform.from_host(value) for name, value in first.items()}
        kept: list[Any] = []
        keep = Keeping(session, kept)
        graph = platform.capture(lambda: kept.append(block(keep, *tensors.values())))
        if graph is None:
            pytest.skip(f"platform {platform.name!r} records no graphs")
        hidden, residual = kept[-1]
        for data in (first, second):
            for name, tensor in tensors.items():
                platform.copy_(tensor, from_numpy(data[name]))
            graph.replay()
            found = (hidden, residual, tensors["keys"], tensors["values"])
            for got, want in zip(map(platform.to_host, found), baseline(data), strict=True):
                np.testing.assert_allclose(got, want, rtol=7e-5, atol=1e-5)


class Keeping(Bound):
    """Keeps every result alive: a recorded step writes to its addresses at each replay."""

    def __init__(self, session: Session, kept: list[Any]) -> None:
        super().__init__(session)
        self._kept = kept

    def __getattr__(self, name: str) -> Any:
        plain = super().__getattr__(name)

        def run(*args: Any) -> Any:
            result = plain(*args)
            self._kept.append(result)
            return result

        return run
