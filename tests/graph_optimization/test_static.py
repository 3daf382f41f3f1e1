"""Ops inside Paddle's static graphs: every op's inference, refusals, changes in place."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from fd_core import ops
from fd_core.api import dtype as dt
from fd_core.api.kernel import ParamKind
from fd_core.api.tensor import TensorSpec, from_numpy
from fd_core.compat import fastdeploy as fd
from fd_core.host.session import current_session
from fd_core.ops.catalogue import catalogue, find
from fd_core.ops.guest import exporter, to_tensor
from fd_core.ops.schema import OpDef


def tensor(paddle: Any, array: Any) -> Any:
    return exporter(paddle.zeros([1]))(from_numpy(np.ascontiguousarray(array)))


def bits(value: Any) -> bytes:
    session = current_session()
    array = to_tensor(value, session.platform, session.device.device, False).numpy()
    return np.ascontiguousarray(array).tobytes()


def results(found: Any) -> list[Any]:
    return list(found) if isinstance(found, list | tuple) else [found]


def both(paddle: Any, definition: OpDef) -> tuple[list[bytes], list[bytes]]:
    """Results of the op's first case in a static graph, and of the plain call."""
    case = next(c for c in definition.cases if not c.bench)
    inputs = case.args(np.random.default_rng(0), case.dtypes[0].numpy())
    names = [n for n, v in inputs.items() if isinstance(v, np.ndarray)]
    rest = {n: v for n, v in inputs.items() if n not in names}
    public = getattr(ops, definition.name)

    @paddle.jit.not_to_static
    def by_name(tensors: Any) -> Any:
        return dict(zip(names, tensors, strict=True))

    def run(tensors: Any) -> Any:
        return public(**by_name(tensors), **rest)

    graph = paddle.jit.to_static(run, full_graph=True)
    found = [call([tensor(paddle, inputs[n]) for n in names]) for call in (graph, run)]
    static, plain = ([bits(value) for value in results(f)] for f in found)
    return static, plain


def test_every_op_of_the_catalogue(paddle: Any) -> None:
    for definition in catalogue().values():
        if definition.name in current_session().ops:
            static, plain = both(paddle, definition)
            assert static == plain, definition.name


class TestDynamicDimensions:
    def spec(self, paddle: Any, *shape: int | None) -> Any:
        return paddle.static.InputSpec(list(shape), "float32")

    def test_rows_unknown_when_the_graph_is_built(self, paddle: Any) -> None:
        w = paddle.ones([8])

        def run(x: Any) -> Any:
            return ops.swiglu(ops.rms_norm(x, w, 1e-6), None)

        graph = paddle.jit.to_static(run, input_spec=[self.spec(paddle, None, 8)], full_graph=True)
        for rows in (1, 5, 3):
            x = paddle.randn([rows, 8])
            np.testing.assert_array_equal(graph(x).numpy(), run(x).numpy())

    def test_inferred_sizes(self) -> None:
        from fd_core.paddle.static import shapes

        got = shapes(find("swiglu"), {"x": TensorSpec((-1, 8), dt.float32)}, (("y", None),))
        assert got == [TensorSpec((-1, 4), dt.float32)]
        got = shapes(find("gather_tokens"), {
            "src": TensorSpec((7, -1), dt.bfloat16), "indices": TensorSpec((3,), dt.int32),
        }, ())  # fmt: skip
        assert got == [TensorSpec((3, -1), dt.bfloat16)]

    def test_made_and_changed_at_once_needs_fixed_sizes(self, paddle: Any) -> None:
        ids = paddle.to_tensor(np.zeros(4, np.int32))

        def run(x: Any) -> Any:
            cache = paddle.zeros([2, 1, 4, 8])
            table = paddle.zeros([1, 1], dtype="int32")
            lists = (ids[:1], ids[:1], ids[:2], table)
            rotary = paddle.ones([2, 1, 8, 1, 4])
            options = (None, None, None, None, 1e-6, True, 0)
            return ops.append_attention(x, cache, cache, *lists, rotary, *options)

        graph = paddle.jit.to_static(run, input_spec=[self.spec(paddle, None, 24)], full_graph=True)
        with pytest.raises(ValueError, match=r"append_attention.out: want a fixed shape inside a graph"):
            graph(paddle.zeros([4, 24]))


class TestInPlace:
    X, R, W = (
        np.random.default_rng(i).standard_normal(s).astype(np.float32)
        for i, s in enumerate(((3, 8), (3, 8), 8))
    )

    def want(self) -> tuple[Any, Any]:
        x, r = self.X.copy(), self.R.copy()
        ops.fused_add_rmsnorm(x, r, self.W, 1e-6)
        return x, r

    @pytest.mark.parametrize("full_graph", [True, False])
    def test_callers_tensors_are_changed(self, paddle: Any, full_graph: bool) -> None:
        """Also where the graph does not use what the op returns."""
        from paddle.jit.sot.utils import min_graph_size_guard

        def run(x: Any, r: Any, w: Any) -> Any:
            fd.fused_add_rmsnorm(x, r, w, 1e-6)
            return w + 0

        with min_graph_size_guard(0):
            graph = paddle.jit.to_static(run, full_graph=full_graph)
            x, r, w = (paddle.to_tensor(a) for a in (self.X, self.R, self.W))
            places = x.data_ptr(), r.data_ptr()
            got = graph(x, r, w)
        for value, want in zip((got, x, r), (self.W, *self.want()), strict=True):
            np.testing.assert_array_equal(value.numpy(), want)
        assert (x.data_ptr(), r.data_ptr()) == places

    def test_order_of_changes_and_reads(self, paddle: Any) -> None:
        """Readers before and after each change see what eager calls would."""

        def run(x: Any, r: Any, w: Any) -> Any:
            seen = [x * 2]
            for _ in range(5):
                x, r = ops.fused_add_rmsnorm(x, r, w, 1e-6)
                seen.append(x * 2 + r)
            return seen

        graph = paddle.jit.to_static(run, full_graph=True)
        for _ in range(20):
            copies = [[paddle.to_tensor(a) for a in (self.X, self.R, self.W)] for _ in range(2)]
            for got, want in zip(graph(*copies[0]), run(*copies[1]), strict=True):
                np.testing.assert_array_equal(got.numpy(), want.numpy())

    def test_results_of_one_shape_are_apart(self, paddle: Any) -> None:
        """Paddle merges what is made alike: two results must not share memory for that."""
        ids = [paddle.to_tensor(np.array(a, np.int32)) for a in ([0], [2], [0, 2], [[0]])]
        rotary = paddle.ones([2, 1, 8, 1, 4])

        def run(x: Any, y: Any, keys: Any, values: Any, ids: Any) -> Any:
            options = (rotary, None, None, None, None, 1e-6, True, 0)
            first = ops.append_attention(x, keys, values, *ids, *options)
            return first, ops.append_attention(y, keys, values, *ids, *options)

        graph = paddle.jit.to_static(run, full_graph=True)
        x, y = paddle.randn([2, 24]), paddle.randn([2, 24])
        found = [call(x, y, *(paddle.zeros([1, 1, 4, 8]) for _ in range(2)), ids) for call in (graph, run)]
        for got, want in zip(*found, strict=True):
            np.testing.assert_array_equal(got.numpy(), want.numpy())
        assert not np.array_equal(found[0][0].numpy(), found[0][1].numpy())

    def test_operator_is_kept_for_the_next_process(self, paddle: Any) -> None:
        from fd_core.paddle.in_place import library

        assert library().is_file()
        assert paddle.__version__ in library().name


class TestRefusals:
    """While the graph is built: the op's own error. Inside it: an error of Paddle's that ends nothing."""

    def build(self, paddle: Any, run: Any, *tensors: Any) -> Any:
        return paddle.jit.to_static(run, full_graph=True)(*tensors)

    def test_shapes(self, paddle: Any) -> None:
        def run(x: Any) -> Any:
            return ops.weight_dequantize(x, x)

        with pytest.raises(ValueError, match=r"weight_dequantize: no output shape follows from x \[3\]"):
            self.build(paddle, run, paddle.zeros([3]))

    def test_types(self, paddle: Any) -> None:
        def run(x: Any) -> Any:
            return ops.swiglu(x, None)

        with pytest.raises(Exception, match=r"op 'swiglu' in a graph.*DTYPE.*have int32"):
            self.build(paddle, run, paddle.zeros([2, 4], dtype="int32"))

    def test_outputs(self, paddle: Any) -> None:
        def run(x: Any) -> Any:
            return ops.silu(x, x)

        with pytest.raises(
            ValueError, match=r"silu.out: want no output inside a graph, have one; fix: use"
        ):
            self.build(paddle, run, paddle.zeros([2, 4]))

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (lambda x: (x, x), r"rms_norm: missing eps"),
            (
                lambda x: (x, np.ones(4, np.float32), 1e-6),
                r"weight: want a value of the graph \(x are\), have nd",
            ),
            (lambda x: (x, x, "small"), r"rms_norm.eps: want float, have 'small'"),
        ],
    )
    def test_arguments(self, paddle: Any, arguments: Any, text: str) -> None:
        def run(x: Any) -> Any:
            return ops.rms_norm(*arguments(x))

        with pytest.raises(TypeError, match=text):
            self.build(paddle, run, paddle.zeros([2, 4]))

    def test_data_of_an_op_that_changes(self, paddle: Any) -> None:
        def run(x: Any, r: Any, w: Any) -> Any:
            return ops.fused_add_rmsnorm(x, r, w, -1.0)

        x, w = paddle.zeros([2, 4]), paddle.ones([4])
        with pytest.raises(ValueError, match=r"refused inside a graph: ValueError: fused_add_rmsnorm.eps"):
            self.build(paddle, run, x, x + 1, w)
        np.testing.assert_array_equal(ops.silu(x).numpy(), np.zeros((2, 4)))  # the process goes on

    def test_data_of_an_op_that_makes(self, paddle: Any) -> None:
        def run(x: Any, ids: Any) -> Any:
            return ops.gather_tokens(x, ids)

        x, ids = paddle.zeros([2, 4]), paddle.to_tensor(np.array([9], np.int32))
        with pytest.raises((SystemError, ValueError), match=r"py_func|gather_tokens"):
            self.build(paddle, run, x, ids)


NOT_IMPORTED = """
import paddle
from fd_core import ops
paddle.enable_static()
try:
    ops.silu(paddle.static.data("x", [2, 4]))
except TypeError as error:
    assert "silu.x: want a tensor" in str(error), error
    assert "import fd_core.paddle.static" in str(error), error
else:
    raise SystemExit("no error")
"""


def test_without_the_import_the_error_names_it() -> None:
    pytest.importorskip("paddle", reason="paddlepaddle is not installed")
    done = subprocess.run([sys.executable, "-c", NOT_IMPORTED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_kinds_cover_every_parameter() -> None:
    kinds = {p.kind for d in catalogue().values() for p in d.spec.params}
    assert kinds == set(ParamKind)
