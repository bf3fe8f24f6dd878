"""How the service itself fared: latency, errors, refusals and abstentions, per model version and stretch of time.

In: what each replica of the service counted in the last few seconds (a tick), appended by the replica that counted it.
Out: the sums of any stretch, over all replicas. A tick holds differences, not totals, so a sum needs no order, a
replica that dies loses its last tick alone, and one that writes a tick twice has written it once.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from monitoring.database import SERVICE_HEALTH, insert_new

_STEP = 1.25
LATENCY_EDGES_S = tuple(0.0005 * _STEP**i for i in range(53))
"""Upper edges of the latency buckets, from 0.5 ms to 55 s; a quantile read off them is at most 12% off."""


@dataclass
class Counts:
    """What happened to the requests for predictions. latency: answered requests by bucket, slower ones last."""

    answered: int = 0
    errors: int = 0  # 5xx but 503: the model or the service failed
    unavailable: int = 0  # 503: overloaded, no champion, or no log to write to
    refused: int = 0  # 4xx: the request was at fault
    rows: int = 0  # predicted and logged
    abstained: int = 0  # of these rows
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_EDGES_S) + 1))

    def took(self, seconds: float) -> None:
        """One answered request more."""
        self.answered += 1
        self.latency[bisect_left(LATENCY_EDGES_S, seconds)] += 1


@dataclass(frozen=True)
class Tick:
    """One replica's counts of some seconds, by model version (0 where none served). at: when they ended."""

    replica: str
    tick: int
    at: float
    counts: Mapping[int, Counts]


@dataclass(frozen=True)
class Health:
    """The service over a stretch of time. Shares are None, and latencies NaN, where nothing was asked."""

    counts: Counts

    @property
    def requests(self) -> int:
        c = self.counts
        return c.answered + c.errors + c.unavailable + c.refused

    @property
    def error_share(self) -> float | None:
        """Of the requests that were well formed, those that the model or the service failed."""
        c = self.counts
        return _share(c.errors, c.answered + c.errors)

    @property
    def unavailable_share(self) -> float | None:
        return _share(self.counts.unavailable, self.requests)

    @property
    def refused_share(self) -> float | None:
        return _share(self.counts.refused, self.requests)

    @property
    def abstained_share(self) -> float | None:
        return _share(self.counts.abstained, self.counts.rows)

    def latency_s(self, quantile: float) -> float:
        """Seconds from an answered request's arrival to its answer, interpolated within its bucket; else NaN."""
        wanted, below = quantile * self.counts.answered, 0
        if self.counts.answered == 0:
            return math.nan
        for bucket, count in enumerate(self.counts.latency):
            if count and below + count >= wanted:
                high = LATENCY_EDGES_S[min(bucket, len(LATENCY_EDGES_S) - 1)]
                return high * math.pow(_STEP, (wanted - below) / count - 1.0)
            below += count
        return LATENCY_EDGES_S[-1]

    def figures(self) -> dict[str, float | None]:
        """In one word each, as a window's row keeps them; None where nothing was asked."""
        asked = self.counts.answered > 0
        return {
            "requests": float(self.requests),
            "median_ms": 1000.0 * self.latency_s(0.5) if asked else None,
            "p99_ms": 1000.0 * self.latency_s(0.99) if asked else None,
            "errors": self.error_share,
            "unavailable": self.unavailable_share,
            "refused": self.refused_share,
            "abstained": self.abstained_share,
        }


def record(engine: sa.Engine, ticks: Sequence[Tick]) -> None:
    """Append ticks; those that are there already change nothing."""
    rows = [
        {"replica": tick.replica, "tick": tick.tick, "version": version, "at": tick.at, **vars(counts)}
        for tick in ticks
        for version, counts in tick.counts.items()
    ]
    if rows:
        with engine.begin() as connection:
            connection.execute(insert_new(engine, SERVICE_HEALTH), rows)


def health(engine: sa.Engine, since: float, until: float, version: int | None = None) -> Health:
    """The sums of the ticks that ended at since < at <= until, of one model version or of all."""
    return by_version(engine, since, until, version).get(version, Health(Counts()))


def by_version(engine: sa.Engine, since: float, until: float, only: int | None = None) -> dict[int | None, Health]:
    """The same for every version that served meanwhile; under None for all of them together."""
    h = SERVICE_HEALTH.c
    inside = (h.at > since) & (h.at <= until)
    if only is not None:
        inside &= h.version == only
    found: dict[int | None, Counts] = {}
    with engine.connect() as connection:
        for row in connection.execute(sa.select(SERVICE_HEALTH).where(inside)).mappings():
            for each in (int(row["version"]), None):
                _add(found.setdefault(each, Counts()), row)
    return {each: Health(counts) for each, counts in found.items()}


def prune(engine: sa.Engine, before: float) -> int:
    """Forget ticks that ended before that; the windows keep what they showed. Returns how many rows went."""
    with engine.begin() as connection:
        return int(connection.execute(sa.delete(SERVICE_HEALTH).where(SERVICE_HEALTH.c.at < before)).rowcount)


def _add(to: Counts, row: sa.RowMapping) -> None:
    for name in ("answered", "errors", "unavailable", "refused", "rows", "abstained"):
        setattr(to, name, getattr(to, name) + int(row[name]))
    to.latency = [a + int(b) for a, b in zip(to.latency, row["latency"], strict=True)]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
