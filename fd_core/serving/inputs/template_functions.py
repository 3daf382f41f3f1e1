"""Filters and globals of chat templates that are ours: sized before they build their result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from jinja2.utils import Namespace

from fd_core.serving.inputs.budget import TemplateError, current, ticking


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: no HTML escapes, non-ASCII text as it is."""
    budget = current()
    if indent is not None and not 0 <= indent <= 16:
        raise TemplateError(f"tojson: indent must be within 0..16, found {indent}")
    budget.allow(6 * budget.size(value))
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    budget = current()
    items = [item[attribute] if attribute else item for item in ticking(value)]
    budget.allow(budget.size(items) + len(str(d)) * len(items))
    return str(d).join(map(str, items))


def replace(s: str, old: str, new: str, count: int = -1) -> str:
    s, old, new = str(s), str(old), str(new)
    current().allow(len(s) + (s.count(old) if old else len(s) + 1) * len(new))
    return s.replace(old, new, count)


def indent(s: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
    if not 0 <= width <= 64:
        raise TemplateError(f"indent: width must be within 0..64, found {width}")
    s = str(s)
    current().allow(len(s) + (s.count("\n") + 1) * width)
    pad = " " * width
    lines = [pad + line if line or blank else line for line in s.split("\n")]
    return "\n".join(lines) if first else "\n".join(lines)[len(pad if lines[0] else "") :]


def bounded_range(*args: int) -> range:
    found = range(*args)
    if len(found) > current().MAX_RANGE:
        raise TemplateError(f"range of {len(found)} in the chat template; at most {current().MAX_RANGE}")
    return found


def raise_exception(message: str) -> None:
    raise TemplateError(str(message)[:500])


def strftime_now(form: str) -> str:
    if len(form) > 100:
        raise TemplateError("strftime_now: format longer than 100 characters")
    return datetime.now().strftime(form)


def sized_filters() -> dict[str, Callable[..., Any]]:
    return {"tojson": tojson, "join": join, "replace": replace, "indent": indent}


GLOBALS: dict[str, Any] = {
    "range": bounded_range,
    "namespace": Namespace,
    "dict": dict,
    "raise_exception": raise_exception,
    "strftime_now": strftime_now,
}
