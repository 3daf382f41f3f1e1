"""Every environment variable, declared once: name, type, default, choices, owner, meaning.

`value("FD_PLATFORM")` reads and converts at the time of the call. Plug-ins declare theirs in their
static manifest. `python -m fd_core.environ` prints the table that docs/environment.md holds.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "FD_"


@dataclass(frozen=True, slots=True)
class Variable:
    """`kind`: text | integer | number | switch | names (separated by commas) | path.

    `default` is the text that stands for an unset variable; "" reads as None (names: empty).
    """

    name: str
    doc: str
    kind: str = "text"
    default: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    owner: str = "fd-core"

    def __post_init__(self) -> None:
        if self.kind not in _READERS:
            raise ValueError(f"{self.name}: want a kind of {', '.join(_READERS)}, have {self.kind!r}")


class VariableError(ValueError):
    """A variable holds something that its declaration does not allow."""


def _switch(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False}
    words |= {"no": False, "off": False}
    return words[text.lower()]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


_READERS: dict[str, Callable[[str], Any]] = {
    "text": str,
    "integer": int,
    "number": float,
    "switch": _switch,
    "names": _names,
    "path": os.path.expanduser,
}
_WANTS = {"integer": "an integer", "number": "a number", "switch": "1 or 0"}


def read(variable: Variable, environ: Mapping[str, str]) -> Any:
    """The typed value. An empty variable counts as unset."""
    text = environ.get(variable.name, "").strip() or variable.default
    if not text:
        return () if variable.kind == "names" else None
    try:
        value = _READERS[variable.kind](text)
    except (ValueError, KeyError):
        raise _refuse(variable, text, _WANTS.get(variable.kind, variable.kind)) from None
    if variable.choices and text not in variable.choices:
        raise _refuse(variable, text, "one of " + ", ".join(variable.choices))
    if variable.minimum is not None and value < variable.minimum:
        raise _refuse(variable, text, f"at least {variable.minimum:g}")
    return value


def _refuse(variable: Variable, text: str, want: str) -> VariableError:
    fix = f"unset it or write {variable.default!r}" if variable.default else "unset it"
    return VariableError(f"{variable.name} ({variable.owner}): want {want}, have {text!r}; fix: {fix}")


class Registry:
    """Declared variables by name."""

    def __init__(self, variables: Iterable[Variable] = ()) -> None:
        self._table: dict[str, Variable] = {}
        self.declare(variables)

    def declare(self, variables: Iterable[Variable]) -> None:
        """Add variables. The same declaration twice is fine, two owners of one name are not."""
        for variable in variables:
            held = self._table.setdefault(variable.name, variable)
            if held.owner != variable.owner:
                owners = f"{held.owner} and {variable.owner}"
                raise ValueError(f"environment variable {variable.name} has two owners: {owners}")

    def value(self, name: str, environ: Mapping[str, str] | None = None) -> Any:
        """The typed value of a declared variable; KeyError for an undeclared one."""
        if name not in self._table:
            raise KeyError(f"environment variable {name} is not declared{self._near(name)}")
        return read(self._table[name], os.environ if environ is None else environ)

    def unknown(self, environ: Mapping[str, str] | None = None) -> list[str]:
        """One warning for each FD_ variable that nobody declares, with the nearest name."""
        names = sorted(os.environ if environ is None else environ)
        mine = [name for name in names if name.startswith(PREFIX) and name not in self._table]
        return [f"unknown environment variable {name}{self._near(name)}" for name in mine]

    def _near(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._table, 1, 0.6)
        return f"; did you mean {near[0]}?" if near else ""

    def variables(self) -> list[Variable]:
        return sorted(self._table.values(), key=lambda v: (v.owner != "fd-core", v.owner, v.name))

    def markdown(self) -> str:
        """The documentation table."""
        rows = ["| Variable | Type | Default | Owner | Meaning |", "|---|---|---|---|---|"]
        for v in self.variables():
            kind = " / ".join(v.choices) or v.kind
            rows.append(f"| `{v.name}` | {kind} | {v.default or 'unset'} | {v.owner} | {v.doc} |")
        return "\n".join(rows) + "\n"


CORE: tuple[Variable, ...] = (
    Variable("FD_PLATFORM", "Platform to use; unset: the best that is available."),
    Variable("FD_PLUGINS_ONLY", "Load only these plug-ins.", "names"),
    Variable("FD_PLUGINS_BLOCK", "Load all plug-ins but these.", "names"),
    Variable("FD_SAFE_MODE", "Import nothing third-party: the reference platform alone.", "switch", "0"),
    Variable(
        "FD_PROBE",
        "How plug-ins are probed: in a process of their own, or in this one (no protection from crashes).",
        default="subprocess",
        choices=("subprocess", "inline"),
    ),
    Variable("FD_PROBE_TIMEOUT", "Seconds a probe may take.", "number", "20", minimum=0.1),
    Variable(
        "FD_FALLBACK",
        "What happens when the device's kernel does not take a call. Unset: `error` if a platform was "
        "named, else `warn`.",
        choices=("error", "warn", "allow"),
    ),
    Variable(
        "FD_KERNELS", "Provider per op, before all priorities: `rms_norm=oracle,linear=fd-x`.", "names"
    ),
    Variable(
        "FD_SIM", "Device that reports speak of, though it is not there: `NAME:ARCH` or `NAME:ARCH,16GiB`."
    ),
    Variable(
        "FD_SIM_FAULT",
        "Faults of the platform `simulated`: `oom:5,async:3,lost:9,nan:rms_norm,random:OP,stream:OP`.",
        "names",
    ),
    Variable("FD_ATTENTION_BACKEND", "Attention backend by name; unset: the best that supports the model."),
    Variable("FD_API_KEY", "Valid API keys of `fd serve`, separated by commas."),
    Variable("FD_LOG", "Levels of `fd serve`'s logs by subtree: `info,fd.engine=debug`."),
    Variable(
        "FD_LOG_FORMAT",
        "Form of the log lines; unset: text on a terminal, else json.",
        choices=("json", "text"),
    ),
    Variable(
        "FD_LOG_LEVEL",
        "Level of the `fd` loggers where FD_LOG says nothing; unset: INFO for `fd serve`, else WARNING.",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
    ),
    Variable("FD_MAX_BAD_WORDS_NUM", "Most bad-word sequences per request.", "integer", "64", minimum=0),
    Variable("FD_BAD_WORDS_MAX_LEN", "Most tokens in one bad-word sequence.", "integer", "16", minimum=1),
)

registry = Registry(CORE)
value = registry.value


def document() -> str:
    """docs/environment.md: the core's variables and those of the installed plug-ins."""
    from fd_core.host.check import check
    from fd_core.host.find import installed

    table = Registry(CORE)
    for found in installed():
        manifest, _ = check(found)
        rows = manifest.environment if manifest else ()
        table.declare(Variable(**row.model_dump(), owner=found.distribution) for row in rows)
    return f"{_HEAD}\n{table.markdown()}"


_HEAD = """# Environment variables

Written by `python -m fd_core.environ > docs/environment.md` from the declarations; a test compares the two.
Names that nobody declares are reported with the nearest one. An empty variable counts as unset.
"""

if __name__ == "__main__":
    import sys

    from fd_core.environ import document as _document  # this module under its own name

    sys.stdout.write(_document())
