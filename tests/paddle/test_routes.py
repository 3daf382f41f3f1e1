"""The functions made for one op: what a public call accepts, and which way it takes."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

import far_library as far
import numpy as np
import pytest

from fd_core.api.ffi import tvm_ffi
from fd_core.api.tensor import Tensor
from fd_core.host import session as sessions
from fd_core.ops import call as calls
from fd_core.ops.call import function
from fd_core.ops.schema import REQUIRED, In, InOut, OpDef, OptIn, OptInOut, Out, op


def declare(oracle: Callable[..., None], infer: Any) -> OpDef:
    return op(family="test", cases=(), tolerance=None, infer=infer)(oracle)  # type: ignore[arg-type]


def scaled(x: In, bias: OptIn, scale: float, first: Out, second: Out) -> None:
    """What may be left out stands before what may not; two outputs."""


def renamed(x: In, scale: float = 1.5, result: Out = REQUIRED) -> None:
    """One output, not called `out`."""


def awkward(type: In, route: In, names: int, more: bool = False) -> None:
    """Names that a generated function could mean something else by."""


def in_place(x: InOut, cache: OptInOut) -> None:
    """No outputs."""


SCALED = declare(scaled, lambda x, bias, scale: [x, x])
RENAMED = declare(renamed, lambda x, scale: [x])
AWKWARD = declare(awkward, lambda **_: [])
IN_PLACE = declare(in_place, lambda **_: [])


class Op:
    """The public function of an op on a device whose compiled target keeps its plain arguments;
    `long` counts the calls that took the long way."""

    def __init__(self, definition: OpDef, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[list[Any]] = []
        self.long = 0
        self._call = calls.call
        target = tvm_ffi().convert(lambda *args: self.seen.append([*map(plain, args)]))
        self.session = far.session(definition.name, target)
        monkeypatch.setattr(sessions, "current", self.session)
        monkeypatch.setattr(calls, "call", self._count)
        self.run = function(definition)

    def _count(self, *args: Any) -> Any:
        self.long += 1
        return self._call(*args)


def plain(value: Any) -> Any:
    """A tensor by its shape."""
    return tuple(value.shape) if hasattr(value, "shape") else value


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[[OpDef], Op]:
    return lambda definition: Op(definition, monkeypatch)


def x(rows: int = 2) -> far.Far:
    return far.Far(np.ones((rows, 8)))


class TestArguments:
    def test_positions_and_names_are_one_form(self, make: Any) -> None:
        op, out = make(RENAMED), x()
        for _ in range(2):
            assert op.run(x(), 1.5, out) is out
            assert op.run(x(), result=out) is out
            assert op.run(result=out, scale=1.5, x=x()) is out
            assert op.run(x(), 1.5, result=out) is out
        assert op.long == 1
        assert op.seen == [[(2, 8), 1.5, (2, 8)]] * 8

    def test_out_stands_for_an_output_of_another_name(self, make: Any) -> None:
        op, out = make(RENAMED), x()
        for _ in range(3):
            assert op.run(x(), out=out) is out
        made = far.Far.made
        for _ in range(3):
            assert op.run(x(), out=None).shape == (2, 8)
        assert (op.long, far.Far.made - made) == (2, 3)
        assert op.seen == [[(2, 8), 1.5, (2, 8)]] * 6

    def test_several_outputs_given_and_made(self, make: Any) -> None:
        op, first, second = make(SCALED), x(), x()
        for _ in range(3):
            assert op.run(x(), None, 2.0, first, second) == [first, second]
            assert op.run(x(), scale=2.0, second=second)[1] is second
            assert op.run(x(), x(1), 2.0, out=[first, second]) == [first, second]
        assert op.long == 2 + 3  # a list is taken apart on the long way
        assert op.seen == [
            [(2, 8), None, 2.0, (2, 8), (2, 8)],
            [(2, 8), None, 2.0, (2, 8), (2, 8)],
            [(2, 8), (1, 8), 2.0, (2, 8), (2, 8)],
        ] * 3  # fmt: skip

    def test_any_name_will_do(self, make: Any) -> None:
        op = make(AWKWARD)
        for _ in range(2):
            assert op.run(x(1), x(2), 3) is None
            assert op.run(names=3, route=x(2), type=x(1), more=False) is None
        assert op.long == 1
        assert op.seen == [[(1, 8), (2, 8), 3, False]] * 4

    def test_what_was_changed_is_returned(self, make: Any) -> None:
        op, a, b = make(IN_PLACE), x(), x()
        for _ in range(2):
            assert op.run(a) is a
            assert op.run(a, cache=b) == [a, b]
        assert op.long == 2

    def test_values_that_need_a_conversion_get_it_each_time(self, make: Any) -> None:
        op = make(RENAMED)
        for _ in range(3):
            op.run(x(), np.float32(0.5))
        assert op.long == 3
        assert [row[1] for row in op.seen] == [0.5] * 3

    def test_as_inspect_sees_it(self, make: Any) -> None:
        run = make(SCALED).run
        assert str(inspect.signature(run)) == "(x, bias, scale, first=None, second=None)"
        assert (run.__name__, run.__module__) == ("scaled", "fd_core.ops")
        assert run.__doc__ == scaled.__doc__


class TestRefusals:
    @pytest.mark.parametrize(
        ("args", "kwargs", "text"),
        [
            ((), {}, "scaled: missing x, scale"),
            ((1, 2, 3, 4, 5, 6, 7), {}, "scaled: want at most 5 arguments, have 7"),
            ((1,), {"factor": 2}, "scaled: argument 'factor' is unknown; the parameters are x, bias, "),
            ((1, None, 2.0), {"x": 1}, r"scaled\(\) got multiple values for argument 'x'"),
            ((1, None, 2.0), {"first": 1, "out": [1, 2]}, "scaled: argument 'first' is given twice, by"),
            ((1, None, 2.0), {"out": 1}, "scaled: out= wants 2 tensors, have 1"),
            ((1, None, 2.0), {}, "scaled.x: want a tensor .* have int"),
        ],
    )  # fmt: skip
    def test_before_and_after_a_route_is_known(self, make: Any, args: Any, kwargs: Any, text: str) -> None:
        op = make(SCALED)
        for _ in range(3):
            with pytest.raises(TypeError, match=text):
                op.run(*args, **kwargs)
            op.run(x(), None, 2.0)
        assert len(op.seen) == 3


class TestForms:
    def test_forms_in_turn_keep_their_ways(self, make: Any) -> None:
        op, out = make(RENAMED), x()
        for _ in range(5):
            assert op.run(x(), out=out) is out
            assert op.run(x().view, out=out) is out
            assert isinstance(op.run(x().view), Tensor)
        assert op.long == 3

    def test_a_bounded_number_is_remembered(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(calls, "_FORMS", 2)
        op = make(RENAMED)
        first, second, third = (x(), 1.5), (x(), 2), (x().view, 1.5)
        for form, long in ((first, 1), (second, 2), (first, 2), (second, 2), (third, 3), (first, 4)):
            op.run(*form)
            assert op.long == long

    def test_another_session_takes_over_at_once(self, make: Any) -> None:
        first = make(RENAMED)
        for _ in range(2):
            first.run(x())
        second = make(RENAMED)
        for _ in range(2):
            first.run(x())
        assert [len(first.seen), len(second.seen)] == [2, 2]
        assert [o.session.ops.renamed.calls for o in (first, second)] == [2, 2]

    def test_threads_share_an_op(self, make: Any) -> None:
        """Two forms and as many threads: every call gets its own result."""
        op, wrong = make(RENAMED), []

        def work(view: bool) -> None:
            for rows in range(1, 201):
                out = x(rows).view if view else x(rows)
                if op.run(x(rows), out=out) is not out:
                    wrong.append((view, rows))

        threads = [threading.Thread(target=work, args=(bool(i % 2),)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert sorted(op.seen) == sorted([[(rows, 8), 1.5, (rows, 8)] for rows in range(1, 201)] * 4)
