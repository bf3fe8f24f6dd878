"""The evidence of all columns, sites and windows as one number, and where in it the change is.

In: the rows of WINDOWS since the last model version or decision; that is all the state there is, so a monitor that
starts anew and a second one find the same. Out: the logarithm of the e-detector, and per scope since when it speaks of
a change and which columns do. Means of e-values are e-values however much columns and sites depend on each other: so
a window's columns share their scope's evidence evenly, the sites share one half, and all rows together have the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.drift import OVERALL
from monitoring.error_evidence import ERRORS, log_since_errors
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
    found: list[ScopeEvidence] = []
    for period, part in _by_period(windows, policy.schedule):
        if period is None or period.windows == "apart":
            learnt = policy.schedule_windows if period is not None else 0
            found += _scopes(part, learnt, policy)
    found.sort(key=lambda one: -one.log_evidence)
    total = float(np.logaddexp.reduce([one.log_evidence for one in found])) if found else -np.inf
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
        parts.setdefault(period.name if period else None, (period, []))[1].append(window)
    return list(parts.values())


def _scopes(windows: Sequence[Window], learnt: int, policy: AlarmPolicy) -> list[ScopeEvidence]:
    """Every scope's evidence. learnt: so many first windows of each are the reference of the later ones."""
    columns: dict[tuple[str, str], _Column] = {}
    for place, window in enumerate(windows):
        for scope, seen in window["evidence"].get("scopes", {}).items():
            for name, told in seen["columns"].items():
                if told.get("tally"):
                    columns.setdefault((scope, name), _Column([], [])).add(place, told["tally"])
    since = _since({key: one for key, one in columns.items() if len(one.places) > learnt}, learnt, policy.persistence)
    since |= _errors_since(windows, policy)
    scopes = sorted({scope for scope, _ in since})
    sites = max(1, sum(scope != OVERALL for scope in scopes))
    found = []
    for scope in scopes:
        own = {name: values for (where, name), values in since.items() if where == scope}
        starts = sorted({place for values in own.values() for place in values})
        if not starts:
            continue
        table = np.array([[values.get(place, -np.inf) for place in starts] for values in own.values()])
        each_start = np.logaddexp.reduce(table, axis=0) - np.log(len(own))
        start = int(np.argmax(each_start))
        loud = sorted(zip(table[:, start].tolist(), own, strict=True), reverse=True)
        speaking = {name: value for value, name in loud if value > _SPEAKS} or {loud[0][1]: loud[0][0]}
        share = 0.5 if scope == OVERALL else 0.5 / sites
        total = float(np.logaddexp.reduce(each_start) + np.log(share))
        found.append(ScopeEvidence(scope, total, int(windows[starts[start]]["window"]), speaking))
    return found


def _errors_since(windows: Sequence[Window], policy: AlarmPolicy) -> dict[tuple[str, str], dict[int, float]]:
    """The evidence of the labels of every scope that has some, by the window since which it speaks."""
    told: dict[str, dict[int, Mapping[str, Any]]] = {}
    for place, window in enumerate(windows):
        for scope, seen in window["evidence"].get("scopes", {}).items():
            if ERRORS in seen["columns"]:
                told.setdefault(scope, {})[place] = seen["columns"][ERRORS]
    found = {}
    for scope, columns in told.items():
        wrong, right = np.array([one["labelled"] for one in columns.values()], dtype=np.float64).T
        tolerated = float(next(iter(columns.values()))["threshold"])
        values = log_since_errors(wrong, right, tolerated, policy.error_margin, policy.persistence)
        found[scope, ERRORS] = _by_place(columns, values)
    return found


def _by_place(places: Iterable[int], values: NDArray[np.float64]) -> dict[int, float]:
    """Those that say something at all."""
    return {place: float(value) for place, value in zip(places, values, strict=True) if np.isfinite(value)}


_SPEAKS = np.log(20.0)  # evidence from which a column is said to have changed, once its scope has


@dataclass
class _Column:
    """The tallies of one column of a scope, and which windows they are of; its newest number of bins counts."""

    places: list[int]
    tallies: list[Mapping[str, Any]]

    def add(self, place: int, tally: Mapping[str, Any]) -> None:
        if self.tallies and len(self.tallies[-1]["counts"]) != len(tally["counts"]):
            self.places, self.tallies = [], []
        self.places.append(place)
        self.tallies.append(tally)


def _since(
    columns: Mapping[tuple[str, str], _Column], learnt: int, persistence: int
) -> dict[tuple[str, str], dict[int, float]]:
    """Of every column the evidence by the window since which it speaks. Alike ones are computed together."""
    alike: dict[tuple[Any, ...], list[tuple[str, str]]] = {}
    for key, one in columns.items():
        shape = (len(one.places), len(one.tallies[-1]["counts"]), one.tallies[-1]["ordered"])
        alike.setdefault(shape, []).append(key)
    found: dict[tuple[str, str], dict[int, float]] = {}
    for (_, _, ordered), keys in alike.items():
        tallies = [columns[key].tallies for key in keys]

        def of(field: str, tallies: list[list[Mapping[str, Any]]] = tallies) -> NDArray[np.float64]:
            return np.array([[each[field] for each in own] for own in tallies], dtype=np.float64)

        counts, expected, limit = of("counts"), of("expected"), of("limit")[:, -1]
        worth = np.minimum(of("worth"), limit[:, None])
        if learnt:
            first, counts = counts[:, :learnt].sum(axis=1), counts[:, learnt:]
            rows = np.maximum(first.sum(axis=1), 1.0)
            expected = np.broadcast_to((first / rows[:, None])[:, None, :], counts.shape)
            worth = np.broadcast_to(rows[:, None], counts.shape[:2])
        values = log_since(Binned(counts, expected, worth, limit, bool(ordered)), persistence)
        for key, row in zip(keys, values, strict=True):
            found[key] = _by_place(columns[key].places[learnt:], row)
    return found
