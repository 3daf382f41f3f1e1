"""Which platform is used: a pure function of facts. Detection is elsewhere."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.host.errors import PlatformError


@dataclass(frozen=True, slots=True)
class PlatformFact:
    """One platform on offer. `verdict` says why it cannot be used; `provider` is its distribution.

    `priority`: None where its plug-in could not say.
    """

    name: str
    provider: str
    priority: int | None = 0
    devices: int = 0
    verdict: Verdict = YES


@dataclass(frozen=True, slots=True)
class Choice:
    """The platform to open; `rejected` are the better ones that could not be used."""

    name: str
    named: bool
    rejected: tuple[PlatformFact, ...] = ()


def ranked(facts: Iterable[PlatformFact]) -> list[PlatformFact]:
    """Best first; names break ties so that the choice never depends on installation order. Those that could
    not say how good they are come before all, so that their reasons are told."""
    return sorted(facts, key=lambda fact: (fact.priority is not None, -(fact.priority or 0), fact.name))


def choose(facts: Sequence[PlatformFact], wanted: str | None = None) -> Choice:
    """`wanted` by name, else the usable platform with the highest priority.

    Raises PlatformError with every platform's reasons. A named platform is never replaced.
    """
    if wanted:
        return _named(facts, wanted)
    order = ranked(facts)
    for position, fact in enumerate(order):
        if fact.verdict.ok:
            return Choice(fact.name, False, tuple(order[:position]))
    raise PlatformError(f"no platform can be used\n{report(order)}", Verdict.all(f.verdict for f in order))


def _named(facts: Sequence[PlatformFact], wanted: str) -> Choice:
    found = [fact for fact in facts if fact.name == wanted]
    if any(fact.verdict.ok for fact in found):
        return Choice(wanted, True)
    verdict = Verdict.all(fact.verdict for fact in found)
    if not found:
        verdict = _unknown(facts, wanted)
    text = f"platform {wanted!r} was asked for and cannot be used: {verdict}\n{report(facts)}"
    raise PlatformError(text, verdict)


def _unknown(facts: Sequence[PlatformFact], wanted: str) -> Verdict:
    names = [fact.name for fact in ranked(facts)]
    near = difflib.get_close_matches(wanted, names, 1)
    fix = f"did you mean {near[0]!r}?" if near else f"pip install fd-{wanted}, if that is its plug-in"
    want = f"one of {', '.join(names) or 'none'}"
    return Verdict.no(ReasonCode.NOT_INSTALLED, "platform", want, repr(wanted), fix)


def report(facts: Iterable[PlatformFact]) -> str:
    """One line per platform."""
    return "\n".join(f"  {f.name} ({f.provider}): {f.verdict}" for f in ranked(facts))
