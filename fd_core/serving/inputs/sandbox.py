"""Jinja's immutable sandbox with a budget that no template can step around.

Jinja's sandbox stops code from reaching Python. It does not stop loops of loops, doubling strings or
huge paddings. Here every loop step, call, filter, output and container ticks a `Budget`; operators,
methods and filters that can amplify are sized before they run; what cannot be sized is not offered.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn

from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from fd_core.serving.inputs.budget import Budget, TemplateError, current, ticking
from fd_core.serving.inputs.template_functions import GLOBALS, sized_filters

STR_METHODS = frozenset(
    "strip lstrip rstrip split rsplit splitlines startswith endswith upper lower title capitalize "
    "find rfind index rindex count replace join isdigit isalpha isalnum isspace isupper islower "
    "removeprefix removesuffix partition rpartition casefold swapcase".split()
)
KEPT_FILTERS = frozenset(
    "abs batch capitalize count d default dictsort e escape first float int items last length list "
    "lower map max min reject rejectattr reverse round safe select selectattr slice sort string sum "
    "title trim truncate unique upper wordcount groupby".split()
)
Operator = Callable[[Budget, Any, Any], None]


class Instrument(NodeTransformer):
    """Rewrites a parsed template so that loops, texts, joins and containers go through the budget."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through("_fd_loop", node.iter)
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return _through("_fd_value", nodes.Const(node.data, lineno=node.lineno))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return _through("_fd_concat", parts)

    def _container(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _through("_fd_value", node)

    visit_List = visit_Dict = _container

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._container(node) if node.ctx == "load" else node


def _through(name: str, value: Any) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


class Generation(Extension):
    """`{% generation %}` marks what a model wrote, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's interface

    def parse(self, parser: Any) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


class Sandbox(ImmutableSandboxedEnvironment):
    """The only Jinja environment of this project."""

    intercepted_binops = frozenset(["+", "-", "*", "**", "/", "//", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, Generation],
            finalize=pass_context(_finalize),
            cache_size=0,
        )
        self.filters = {k: _guarded(v) for k, v in FILTERS.items() if k in KEPT_FILTERS}
        self.filters.update(sized_filters())
        self.filters.update(_fd_loop=ticking, _fd_value=_value, _fd_concat=_concat)
        self.globals = dict(GLOBALS)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = Instrument().visit(super()._parse(source, name, filename))
        return tree

    def handle_exception(self, source: str | None = None) -> NoReturn:
        """The error as it is: Jinja's rewriting of the traceback takes a second for deep ones."""
        error = sys.exc_info()[1]
        raise error if error is not None else TemplateError("template failed")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        SIZED_OPERATORS[operator](current(), left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` is refused like any method not listed: its widths cannot be sized."""
        return None

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (str, bytes)) and attr not in STR_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = current()
        budget.tick()
        _check_method(budget, __obj, args)
        return budget.checked(super().call(__context, __obj, *args, **kwargs))


def _check_method(budget: Budget, method: Any, args: tuple[Any, ...]) -> None:
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(owner, str):
        return
    if name == "replace" and len(args) >= 2:
        budget.allow(
            (len(owner) + 1) * max(1, len(str(args[1])))
            if len(args[0]) < 2
            else owner.count(str(args[0])) * len(str(args[1])) + len(owner)
        )
    if name == "join" and args:
        items = budget.checked(args[0] if isinstance(args[0], (list, tuple)) else list(ticking(args[0])))
        budget.allow(budget.size(items) + len(owner) * len(items))


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    budget = current()
    size = len(value) if isinstance(value, str) else budget.size(value)
    budget.wrote(size)
    return value


def _value(value: Any) -> Any:
    return current().checked(value)


def _concat(parts: list[Any]) -> str:
    budget = current()
    budget.allow(budget.size(parts))
    return "".join(map(str, parts))


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A Jinja filter whose result is sized; integer arguments stay below the range limit."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        budget = current()
        budget.tick()
        for argument in [*args[1:], *kwargs.values()]:
            if isinstance(argument, int) and abs(argument) > budget.MAX_RANGE:
                raise TemplateError(f"filter argument {argument} is beyond {budget.MAX_RANGE}")
        return budget.checked(function(*args, **kwargs))

    return call


def _add(budget: Budget, left: Any, right: Any) -> None:
    if not isinstance(left, (int, float)):
        budget.allow(budget.size(left) + budget.size(right))


def _multiply(budget: Budget, left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(value, int):
            budget.check_int(value)
        elif not isinstance(value, float) and isinstance(times, int):
            budget.allow(budget.size(value) * max(times, 0))
    if isinstance(left, int) and isinstance(right, int):
        _bits(budget, left.bit_length() + right.bit_length())


def _power(budget: Budget, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _bits(budget, left.bit_length() * max(right, 0))


def _bits(budget: Budget, bits: int) -> None:
    if bits > budget.MAX_BITS:
        raise TemplateError("the chat template made an integer that is too large")


def _percent(budget: Budget, left: Any, right: Any) -> None:
    if not isinstance(left, (int, float)):
        raise TemplateError("string formatting with % is not offered to templates; use ~")
    budget.tick()


def _plain(budget: Budget, left: Any, right: Any) -> None:
    budget.tick()


SIZED_OPERATORS: dict[str, Operator] = {
    "+": _add, "*": _multiply, "**": _power, "%": _percent, "-": _plain, "/": _plain, "//": _plain,
}  # fmt: skip
