"""The same samples under other servers' names: renamed while rendering, so nothing is counted twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from fd_core.observe.names import COMPAT


class Renamed:
    """A collector over `source`: its families, then each again under the names asked for."""

    def __init__(self, source: CollectorRegistry, compat: Sequence[str]) -> None:
        unknown = sorted(set(compat) - set(COMPAT))
        if unknown:
            raise ValueError(
                f"metrics compat: want names of {', '.join(COMPAT)}, found {', '.join(unknown)}"
            )
        self._source = source
        self._tables = [COMPAT[name] for name in compat]

    def collect(self) -> Iterator[Metric]:
        for family in self._source.collect():
            yield _without_created(family)
            for prefix, table in self._tables:
                for name in table.get(family.name, ()):
                    yield renamed(family, prefix + name)


def renamed(family: Metric, name: str) -> Metric:
    copy = Metric(name, family.documentation, family.type)
    copy.samples = [Sample(name + s.name[len(family.name) :], *s[1:]) for s in _kept(family.samples)]
    return copy


def _without_created(family: Metric) -> Metric:
    family.samples = list(_kept(family.samples))
    return family


def _kept(samples: Iterable[Sample]) -> Iterator[Sample]:
    return (s for s in samples if not s.name.endswith("_created"))
