"""Do as many rows arrive as usual at this hour? Per site and overall, against the windows before.

In: a window's rows and the habit. Out: rows against the rows expected of the time that passed since the window before.
Hours are told apart by the day's hour (UTC) and by whether it is a weekend; one is judged only when it was seen on
several days. Counts of a clinic vary by more than chance: they are taken as negative binomial, as dispersed as those of
the earlier windows were around their own expectation (McCullagh & Nelder, "Generalized Linear Models", 1989).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from monitoring.drift import OVERALL
from monitoring.findings import Finding, MonitorPolicy
from monitoring.habit import Habit

HOUR_S = 3600.0
_LONGEST_S = 14 * 24 * HOUR_S
"""A window over a longer pause than that says nothing about an hour's volume."""
_LEAST_EXPECTED = 10.0

_MEDIAN_OF_CHI2 = 0.455  # with one degree of freedom, as the squared deviations would be

Slot = tuple[bool, int]


@dataclass
class _Seen:
    rows: float
    seconds: float
    days: set[int]


def exposure(start: float, end: float) -> dict[Slot, float]:
    """Seconds between two moments by (weekend, hour of the day in UTC)."""
    found: dict[Slot, float] = defaultdict(float)
    at = max(start, end - _LONGEST_S)
    while at < end:
        until = min(end, (math.floor(at / HOUR_S) + 1.0) * HOUR_S)
        moment = time.gmtime(at)
        found[(moment.tm_wday >= 5, moment.tm_hour)] += until - at
        at = until
    return dict(found)


def volume(
    started_at: float, ended_at: float, counts: Mapping[str, int], habit: Habit, policy: MonitorPolicy
) -> list[Finding]:
    """Overall and every known site; a site not while an hour of the window is new. counts: rows per site."""
    spans = exposure(habit.past[-1].ended_at if habit.past else started_at, ended_at)
    stretches, hours = _stretches(habit), sum(spans.values()) / HOUR_S
    found = []
    for scope in (OVERALL, *sorted(habit.sites)):
        now = _rows(scope, counts)
        learned = _learn(scope, stretches)
        expected = _expected(learned, spans, policy.habit_days)
        if expected is None or expected < _LEAST_EXPECTED:
            if scope == OVERALL and hours > 0.0:
                found.append(Finding("volume", scope, now / hours, None, False, f"{now} rows in {hours:.1f} h"))
            continue
        ratio = (now + 0.5) / (expected + 0.5)
        beyond = ratio > policy.volume_factor or ratio < 1.0 / policy.volume_factor
        chance = _chance(now, expected, _dispersion(scope, learned, stretches))
        odd = beyond and chance < policy.false_alarm_per_window / (len(habit.sites) + 1)
        sentence = f"{scope}: {now} rows in {hours:.1f} h, usual at this time are {expected:.0f}"
        found.append(Finding("volume", scope, now / hours, expected / hours, odd, sentence))
    return found


@dataclass(frozen=True)
class _Stretch:
    """The time from one earlier window's end to the next one's, and the rows of it."""

    spans: Mapping[Slot, float]
    rows: Mapping[str, int]
    day: int


def _stretches(habit: Habit) -> list[_Stretch]:
    return [
        _Stretch(
            exposure(before.ended_at, window.ended_at),
            {site: told.rows for site, told in window.sites.items()},
            int(window.ended_at // 86_400),
        )
        for before, window in zip(habit.past, habit.past[1:], strict=False)
        if 0 < window.ended_at - before.ended_at <= _LONGEST_S
    ]


def _rows(scope: str, counts: Mapping[str, int]) -> int:
    return sum(counts.values()) if scope == OVERALL else counts.get(scope, 0)


def _learn(scope: str, stretches: Sequence[_Stretch]) -> dict[Slot, _Seen]:
    """What each hour has shown; a stretch over several hours is shared among them by their time."""
    learned: dict[Slot, _Seen] = {}
    for stretch in stretches:
        whole, rows = sum(stretch.spans.values()), _rows(scope, stretch.rows)
        for slot, seconds in stretch.spans.items():
            seen = learned.setdefault(slot, _Seen(0.0, 0.0, set()))
            seen.rows += rows * seconds / whole
            seen.seconds += seconds
            seen.days.add(stretch.day)
    return learned


def _expected(learned: Mapping[Slot, _Seen], spans: Mapping[Slot, float], days: int) -> float | None:
    """Rows to expect of so much time in each slot; None where a slot has been seen too seldom."""
    if not spans or any(slot not in learned or len(learned[slot].days) < days for slot in spans):
        return None
    return sum(seconds * learned[slot].rows / learned[slot].seconds for slot, seconds in spans.items())


def _dispersion(scope: str, learned: Mapping[Slot, _Seen], stretches: Sequence[_Stretch]) -> float:
    """How much more than a Poisson count the earlier windows varied around what was to be expected; 1 at least.

    By the median, so that an outage long ago does not hide the next one.
    """
    terms = []
    for stretch in stretches:
        expected = _expected(learned, stretch.spans, 1)
        if expected and expected >= _LEAST_EXPECTED:
            terms.append((_rows(scope, stretch.rows) - expected) ** 2 / expected)
    return max(1.0, median(terms) / _MEDIAN_OF_CHI2) if terms else 1.0


def _chance(now: int, expected: float, dispersion: float) -> float:
    """Of a count so far from the expected one, to either side: negative binomial with variance dispersion * mean."""
    from scipy.stats import nbinom

    likeness = 1.0 / max(dispersion, 1.001)  # at 1 it is a Poisson count
    counts = nbinom(expected * likeness / (1.0 - likeness), likeness)
    return 2.0 * float(min(counts.cdf(now), counts.sf(now - 1), 0.5))
