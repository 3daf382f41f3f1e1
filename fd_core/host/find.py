"""Step 1 of loading: which plug-ins are installed, from metadata alone; nothing is imported."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fd_core.api.verdict import YES, ReasonCode, Verdict

GROUP = "fd_core.plugins"


@dataclass(frozen=True, slots=True)
class Found:
    """An entry point: plug-in `name`, its `module`, and the distribution that brings it."""

    name: str
    module: str
    distribution: str
    version: str
    verdict: Verdict = YES

    def __str__(self) -> str:
        return f"plug-in {self.name!r} ({self.distribution} {self.version})"


def installed() -> list[Found]:
    """Every entry point of the group, by name; a name taken twice is refused on both."""
    import importlib_metadata

    points = importlib_metadata.entry_points(group=GROUP)
    found = [
        Found(p.name, p.module, p.dist.name if p.dist else "?", p.dist.version if p.dist else "?")
        for p in points
    ]
    return refuse_duplicates(sorted(dict.fromkeys(found), key=lambda f: (f.name, f.distribution)))


def refuse_duplicates(found: Sequence[Found]) -> list[Found]:
    """Two distributions that bring the same plug-in name are both left out."""
    return [_unless_shared(one, [f for f in found if f.name == one.name]) for one in found]


def _unless_shared(one: Found, same: Sequence[Found]) -> Found:
    if len(same) == 1:
        return one
    have = ", ".join(f"{f.distribution} {f.version}" for f in same)
    fix = "uninstall all but one of them"
    return replace(one, verdict=Verdict.no(ReasonCode.REGISTER, str(one), "a name of its own", have, fix))


def filtered(
    found: Iterable[Found], only: Sequence[str] = (), block: Sequence[str] = (), safe: bool = False
) -> list[Found]:
    """Apply FD_PLUGINS_ONLY, FD_PLUGINS_BLOCK and FD_SAFE_MODE: what is left out keeps its reason."""
    return [replace(f, verdict=f.verdict & _allowed(f, only, block, safe)) for f in found]


def _allowed(found: Found, only: Sequence[str], block: Sequence[str], safe: bool) -> Verdict:
    if safe:
        return _disabled(found, "FD_SAFE_MODE=1", "unset FD_SAFE_MODE")
    if only and found.name not in only:
        return _disabled(found, f"FD_PLUGINS_ONLY={','.join(only)}", f"add {found.name} to FD_PLUGINS_ONLY")
    if found.name in block:
        return _disabled(found, f"FD_PLUGINS_BLOCK={','.join(block)}", f"take {found.name} out of it")
    return YES


def _disabled(found: Found, have: str, fix: str) -> Verdict:
    return Verdict.no(ReasonCode.DISABLED, str(found), "to be enabled", have, fix)


def unknown_names(found: Iterable[Found], wanted: Iterable[str], variable: str) -> Verdict:
    """Names in FD_PLUGINS_ONLY or FD_PLUGINS_BLOCK that no installed plug-in has."""
    names = [f.name for f in found]
    return Verdict.all(_unknown(name, names, variable) for name in wanted if name not in names)


def _unknown(name: str, names: Sequence[str], variable: str) -> Verdict:
    near = difflib.get_close_matches(name, names, 1)
    fix = f"did you mean {near[0]!r}?" if near else f"take {name!r} out of {variable}"
    want = f"installed plug-ins ({', '.join(names) or 'none'})"
    return Verdict.no(ReasonCode.NOT_INSTALLED, variable, want, repr(name), fix)
