"""The evidence of all columns, sites and windows as one number, and where in it the change is.

In: the rows of WINDOWS since the last model version or decision; that is all the state there is, so a monitor that
starts anew and a second one find the same. Out: the logarithm of the e-detector, and per scope since when it speaks of
a change and which columns do. Means of e-values are e-values however much columns and sites depend on each other: so
a window's columns share their scope's evidence evenly, the sites share one half, and all rows together have the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.drift import OVERALL
from monitoring.evidence import Binned, log_since
from monitoring.policy import AlarmPolicy, Period

Window = Mapping[str, Any]
"""A row of WINDOWS."""


@dataclass(frozen=True)
class ScopeEvidence:
    """log_evidence: of one scope, with its share. since: number of the window at which the change most likely began.
    columns: those that speak of a change, each with its logarithm of evidence, the loudest first.
    """

    scope: str
    log_evidence: float
    since: int
    columns: Mapping[str, float]


@dataclass(frozen=True)
class Evidence:
    """log_total: the e-detector. scopes: those whose evidence alone is within a tenth of the level, most first."""

    log_total: float
    scopes: tuple[ScopeEvidence, ...]


def detect(windows: Sequence[Window], policy: AlarmPolicy) -> Evidence:
    """What the windows, oldest first and of one model version, say together."""
    from scipy.special import logsumexp

    found: list[ScopeEvidence] = []
    for period, part in _by_period(windows, policy.schedule):
        if period is not None and period.windows == "ignored":
            continue
        learnt = policy.schedule_windows if period is not None else 0
        scopes = sorted({scope for window in part for scope in window["evidence"].get("scopes", {})})
        sites = max(1, sum(scope != OVERALL for scope in scopes))
        for scope in scopes:
            share = 0.5 if scope == OVERALL else 0.5 / sites
            judged = [w for w in part if scope in w["evidence"].get("scopes", {})]
            if (one := _scope(scope, judged, share, learnt, policy.persistence)) is not None:
                found.append(one)
    found.sort(key=lambda one: -one.log_evidence)
    total = float(logsumexp([one.log_evidence for one in found])) if found else -np.inf
    loud = [one for one in found if one.log_evidence > policy.log_level - np.log(10.0)]
    return Evidence(total, tuple(loud))


def period_of(window: Window, schedule: Sequence[Period]) -> Period | None:
    """The part of the week in which the middle of the window lies."""
    middle = (float(window["started_at"]) + float(window["ended_at"])) / 2.0
    return next((period for period in schedule if period.holds(middle)), None)


def _by_period(windows: Sequence[Window], schedule: Sequence[Period]) -> list[tuple[Period | None, list[Window]]]:
    parts: dict[str | None, tuple[Period | None, list[Window]]] = {}
    for window in windows:
        period = period_of(window, schedule)
        parts.setdefault(period and period.name, (period, []))[1].append(window)
    return list(parts.values())


def _scope(scope: str, windows: Sequence[Window], share: float, learnt: int, persistence: int) -> ScopeEvidence | None:
    """The evidence of a scope's columns. learnt: so many first windows are the reference of the later ones."""
    from scipy.special import logsumexp

    tallies = [_tallies(window, scope) for window in windows]
    names = sorted({name for each in tallies for name in each})
    if len(windows) <= learnt or not names:
        return None
    since = np.full((len(names), len(windows)), -np.inf)
    for row, name in enumerate(names):
        there = [place for place, each in enumerate(tallies) if name in each]
        column = _binned([tallies[place][name] for place in there], learnt)
        if column is not None:
            since[row, there[learnt:]] = log_since(column, persistence)
    each_start = logsumexp(since, axis=0) - np.log(len(names))
    if not np.isfinite(each_start).any():
        return None
    start = int(np.argmax(each_start))
    loud = sorted(((float(since[row, start]), name) for row, name in enumerate(names)), reverse=True)
    columns = {name: value for value, name in loud if value > max(0.0, loud[0][0] - 1e9) and value > _SPEAKS}
    total = float(logsumexp(each_start)) + np.log(share)
    return ScopeEvidence(scope, total, int(windows[start]["window"]), columns)


_SPEAKS = np.log(20.0)  # evidence from which a column is said to have changed, once its scope has


def _tallies(window: Window, scope: str) -> dict[str, Mapping[str, Any]]:
    columns = window["evidence"]["scopes"][scope]["columns"]
    return {name: column["tally"] for name, column in columns.items() if column.get("tally")}


def _binned(tallies: Sequence[Mapping[str, Any]], learnt: int) -> Binned | None:
    """The windows after the first `learnt` ones, which take the reference's place."""
    if len(tallies) <= learnt:
        return None
    newest = tallies[-1]
    bins = len(newest["counts"])
    same = [each for each in tallies if len(each["counts"]) == bins]
    if len(same) != len(tallies):
        return None
    counts: NDArray[np.float64] = np.array([each["counts"] for each in tallies], dtype=np.float64)
    expected = np.array([each["expected"] for each in tallies], dtype=np.float64)
    worth = np.array([min(each["worth"], newest["limit"]) for each in tallies], dtype=np.float64)
    if learnt:
        first, counts = counts[:learnt].sum(axis=0), counts[learnt:]
        expected = np.tile(first / max(first.sum(), 1.0), (len(counts), 1))
        worth = np.full(len(counts), float(first.sum()))
    return Binned(counts, expected, worth, float(newest["limit"]), bool(newest["ordered"]))
