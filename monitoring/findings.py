"""What the monitors beside the drift test say of a window: a figure, what is usual, and whether that is odd.

They are about the data and the way they arrive, not about the model, so they never call for a retraining by
themselves: training on pictures that cannot be read would make things worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field


class MonitorPolicy(BaseModel):
    """When the quality, the volume or the silence of traffic is odd."""

    false_alarm_per_window: float = Field(0.001, gt=0, lt=0.5, description="shared by a window's checks and sites")
    smallest_rise: float = Field(0.05, gt=0, lt=1, description="a share that rises by less never counts")
    range_margin: float = Field(0.1, ge=0, description="how far beyond the reference a value may lie, of its range")
    habit_windows: int = Field(300, ge=10, description="earlier windows that say what is usual")
    habit_days: int = Field(3, ge=2, description="days on which an hour was seen before its volume is judged")
    volume_factor: float = Field(2.0, gt=1, description="so many times more or fewer rows than usual are odd")
    silence_factor: float = Field(3.0, gt=1, description="times a site's longest pause so far")
    silence_floor_s: float = Field(900.0, ge=0, description="a shorter pause is never silence")
    silence_rows: int = Field(50, ge=10, description="rows that a silent site would have sent by its share of the rest")
    histograms: bool = Field(False, description="ask the sites for histograms of their new rows, as no row may be seen")
    histogram_rows: int = Field(200, ge=50, description="new rows that a window of histograms holds at least")
    smallest_count: int = Field(5, ge=1, description="a site merges bins with fewer rows into their neighbours")
    keep_health_days: float = Field(30.0, gt=0, description="how long the service's counters are kept")


@dataclass(frozen=True)
class Finding:
    """What one monitor says of one scope. usual: None where there is nothing to compare with yet."""

    monitor: str
    scope: str
    value: float
    usual: float | None
    odd: bool
    sentence: str


@dataclass(frozen=True)
class Share:
    """So many rows of so many."""

    hits: int
    rows: int

    def __add__(self, other: Share) -> Share:
        return Share(self.hits + other.hits, self.rows + other.rows)

    @property
    def value(self) -> float:
        return self.hits / self.rows if self.rows else 0.0


def risen(monitor: str, scope: str, now: Share, usual: Share, policy: MonitorPolicy, checks: int, what: str) -> Finding:
    """Whether a share has risen beyond chance.

    The chance is the beta-binomial predictive probability of as many hits, given those of `usual` under Jeffreys'
    prior: it knows that a small reference is uncertain itself. checks: how many share the window's false alarms.
    what: the hits in words, such as "pictures cannot be read".
    """
    from scipy.stats import betabinom

    chance = float(betabinom.sf(now.hits - 1, now.rows, usual.hits + 0.5, usual.rows - usual.hits + 0.5))
    rise = now.value - usual.value
    odd = chance < policy.false_alarm_per_window / max(checks, 1) and rise > policy.smallest_rise
    sentence = f"{scope}: {now.hits} of {now.rows} {what} ({now.value:.0%}, usual {usual.value:.1%})"
    return Finding(monitor, scope, now.value, usual.value, odd, sentence)


def amiss(findings: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence for each monitor that found something odd, as a window's row keeps them: its worst site, or overall.

    findings: the fields of Finding.
    """
    by_monitor: dict[str, list[Mapping[str, Any]]] = {}
    for finding in findings:
        if finding["odd"]:
            by_monitor.setdefault(finding["monitor"], []).append(finding)
    said = []
    for odd in by_monitor.values():
        sites = sorted(odd[1:] if odd[0]["scope"] == "overall" else odd, key=lambda finding: -finding["value"])
        more = f", and so at {len(sites) - 1} more sites" if len(sites) > 1 else ""
        said.append((sites or odd)[0]["sentence"] + more)
    return said
