"""What an op's arguments must look like: the notation of kernels.toml, parsed and checked.

    "in T H : float"       an input [T, H] of a floating-point type
    "inout? n | n 1 : id"  changed in place, may be None; [n] or [n, 1]; int32 or int64
    "out ... I/2 : x"      an output; the dimensions `...` as elsewhere; the type of parameter x
    "attr"                 no tensor

A size is a number, a name (bound where it first appears, equal afterwards), `>=name`, or a sum or
difference of products of these and of integer attributes (`q_size+2*kv_size`, `I/2`). `...` stands for any
number of dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from fd_core.api.dtype import ALL, FLOATS, DType, dtype
from fd_core.api.tensor import Tensor

GROUPS: dict[str, tuple[DType, ...]] = {
    "float": FLOATS,
    "id": (dtype("int32"), dtype("int64")),
    "any": ALL,
}
Sizes = dict[str, Any]


class Mismatch(Exception):
    """Why one shape does not fit; becomes a ValueError that names the argument."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One parameter. `role`: in | inout | out | attr. `shapes`: alternatives, a tuple of sizes each."""

    name: str
    role: str
    optional: bool = False
    shapes: tuple[tuple[str, ...], ...] = ()
    types: tuple[str, ...] = ()

    @property
    def is_tensor(self) -> bool:
        return self.role != "attr"

    @property
    def is_written(self) -> bool:
        return self.role in ("inout", "out")

    def allowed(self) -> tuple[DType, ...]:
        """The types that do not depend on other arguments; empty if some do."""
        named = [GROUPS.get(word) or ((dtype(word),) if word in _NAMES else ()) for word in self.types]
        return tuple(t for group in named for t in group) if all(named) else ()


_NAMES = frozenset(t.name for t in ALL)


def parse(name: str, text: str) -> Argument:
    """ValueError for what the notation does not have."""
    if text == "attr":
        return Argument(name, "attr")
    head, colon, types = text.partition(":")
    role, *dims = head.split()
    if not colon or role.rstrip("?") not in ("in", "inout", "out"):
        raise ValueError(f"{name} = {text!r}: want 'role sizes : types' or 'attr'")
    shapes = tuple(tuple(part.split()) for part in " ".join(dims).split("|"))
    words = tuple(word.strip() for word in types.split("|"))
    return Argument(name, role.rstrip("?"), role.endswith("?"), shapes, words)


def check(op: str, arguments: Sequence[Argument], values: Sequence[Any]) -> None:
    """TypeError or ValueError "op.argument: want ..., have ..." for the first one that does not fit."""
    if len(values) != len(arguments):
        raise TypeError(f"{op}: want {len(arguments)} arguments, have {len(values)}")
    by_name = dict(zip((a.name for a in arguments), values, strict=True))
    sizes: Sizes = {name: value for name, value in by_name.items() if type(value) is int}
    tensors = [(a, v) for a, v in zip(arguments, values, strict=True) if a.is_tensor]
    for argument, value in tensors:
        if not (value is None and argument.optional):
            _check_one(f"{op}.{argument.name}", argument, value, by_name, sizes)
    _check_devices(op, [(a.name, v) for a, v in tensors if v is not None])


def _check_one(label: str, argument: Argument, value: Any, values: Mapping[str, Any], sizes: Sizes) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{label}: want a tensor, have {type(value).__name__}")
    wanted = _types(argument, values)
    if value.dtype not in wanted:
        want = " | ".join(dict.fromkeys(map(str, wanted)))
        raise TypeError(f"{label}: want {want}, have {value.dtype}")
    problems = []
    for shape in argument.shapes:
        try:
            sizes.update(match(shape, value.shape, sizes))
            return
        except Mismatch as problem:
            problems.append(str(problem))
    raise ValueError(f"{label}: want {' or '.join(problems)}, have {list(value.shape)}")


def _types(argument: Argument, values: Mapping[str, Any]) -> list[DType]:
    found: list[DType] = []
    for word in argument.types:
        other = values.get(word)
        if isinstance(other, Tensor):
            found.append(other.dtype)
        elif word not in values:
            found += GROUPS.get(word) or (dtype(word),)
    return found or list(ALL)


def match(shape: Sequence[str], have: Sequence[int], sizes: Mapping[str, Any]) -> Sizes:
    """Names that `shape` binds when it stands for `have`. Mismatch with what was wanted."""
    found: Sizes = dict(sizes)
    words, rest = list(shape), list(have)
    if "..." in words:
        at, free = words.index("..."), len(rest) - len(words) + 1
        held = found.setdefault("...", tuple(rest[at : at + max(0, free)]))
        if free < 0 or tuple(rest[at : at + free]) != held:
            raise Mismatch(_text(shape, sizes))
        words, rest = words[:at] + words[at + 1 :], rest[:at] + rest[at + free :]
    if len(words) != len(rest) or not all(_fits(w, n, found) for w, n in zip(words, rest, strict=True)):
        raise Mismatch(_text(shape, sizes))
    return found


def _fits(word: str, have: int, sizes: Sizes) -> bool:
    if word.startswith(">="):
        return have >= evaluate(word[2:], sizes)
    if word.isidentifier() and word not in sizes:
        sizes[word] = have
        return True
    return have == evaluate(word, sizes)


def evaluate(text: str, sizes: Mapping[str, Any]) -> int:
    """A sum of products; a quotient must be whole, else it fits nothing."""
    terms = text.replace("-", "+-1*").split("+")
    return sum(prod(_factor(part, sizes) for part in term.split("*")) for term in terms)


def _factor(text: str, sizes: Mapping[str, Any]) -> int:
    head, slash, tail = text.partition("/")
    value = int(head) if head.removeprefix("-").isdigit() else int(sizes[head])
    if not slash:
        return value
    whole, rest = divmod(value, int(tail))
    return -1 if rest else whole


def _text(shape: Sequence[str], sizes: Mapping[str, Any]) -> str:
    """The wanted shape with the sizes that are known: [T, 64]."""
    return "[" + ", ".join(_known(word, sizes) for word in shape) + "]"


def _known(word: str, sizes: Mapping[str, Any]) -> str:
    if word == "...":
        return ", ".join(map(str, sizes["..."])) if sizes.get("...") else "..."
    try:
        return (">=" if word.startswith(">=") else "") + str(evaluate(word.removeprefix(">="), sizes))
    except KeyError:
        return word


def _check_devices(op: str, tensors: Sequence[tuple[str, Tensor]]) -> None:
    """All on one device: that of the tensors which the platform owns, else the first one's."""
    homes = [t.device for _, t in tensors if t.storage.platform is not None]
    home = homes[0] if homes else tensors[0][1].device if tensors else None
    for name, tensor in tensors:
        if home and (tensor.device.code, tensor.device.index) != (home.code, home.index):
            raise ValueError(f"{op}.{name}: want a tensor on {home}, have one on {tensor.device}")
