"""Drift from sums alone: how far the sites' histograms of new rows lie from those of the reference.

In: per site and column the counts of its reference and of its new rows, over bins that the reference fixed. Out: how
far every column moved, overall and at each site, in the words of the drift test. Numeric columns are compared by the
Wasserstein distance of the binned values, in units of the reference's standard deviation, the others by the
Jensen-Shannon distance. Thresholds come from a bootstrap of the counts themselves: what a site would send, rare bins
merged and all, if nothing had changed. Of several columns only the single distributions are known, not how they go
together, so a column's threshold is set by Bonferroni's bound.

An answer is counts, so answers add up: what holds for the sum of all sites needs no single site's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.binning import Counts, hide_rare
from monitoring.calibration import tail_quantile
from monitoring.distance import SMALLEST_NORM, Floats, jensen_shannon
from monitoring.drift import (
    CATEGORICAL,
    COLUMNS,
    CONFIDENCE_BANDS,
    NUMERIC,
    OVERALL,
    ColumnDrift,
    DriftPolicy,
    ScopeDrift,
    is_odd,
)

Histograms = Mapping[str, Counts]

FINE_EDGES = tuple(float(edge) for edge in np.geomspace(1e-4, 4.0, 300))
"""Over the range of every numeric column, 3.6% apart: where the sites' own quantiles are looked for."""
BINS = 12


@dataclass(frozen=True)
class Bins:
    """edges: the inner ones of every column. places [bins]: the value a bin stands for; spread: standard deviation."""

    edges: Mapping[str, tuple[float, ...]]
    places: Mapping[str, Floats]
    spread: Mapping[str, float]


def fine_bins(classes: int) -> dict[str, tuple[float, ...]]:
    """Edges for the first question to the sites, from whose answers `choose_bins` follows."""
    return dict.fromkeys(NUMERIC, FINE_EDGES) | fixed_edges(classes)


def fixed_edges(classes: int) -> dict[str, tuple[float, ...]]:
    """Those that depend on the task alone: the bands of confidence, and the classes by their number."""
    return {"confidence": CONFIDENCE_BANDS, "prediction": tuple(number - 0.5 for number in range(1, classes))}


def choose_bins(fine: Histograms, classes: int) -> Bins:
    """Bins of equal counts in the whole reference, with some room on both sides: light may go out altogether."""
    edges, places, spread = fixed_edges(classes), {}, {}
    low = np.array([0.0, *FINE_EDGES])
    middle = (low + np.array([*FINE_EDGES, FINE_EDGES[-1]])) / 2.0
    for name in NUMERIC:
        counts = fine[name].astype(np.float64)
        total = max(counts.sum(), 1.0)
        mean = float(counts @ middle / total)
        deviation = math.sqrt(max(float(counts @ (middle - mean) ** 2 / total), SMALLEST_NORM**2))
        reached = np.searchsorted(np.cumsum(counts) / total, np.arange(1, BINS) / BINS)
        seen = np.flatnonzero(counts)
        ends = (middle[seen[0]], middle[seen[-1]]) if len(seen) else (mean, mean)
        room = [ends[0] - step * deviation for step in (0.0, 1.0, 2.0)]
        room += [ends[1] + step * deviation for step in (0.0, 1.0, 2.0)]
        own = {FINE_EDGES[place] for place in reached if place < len(FINE_EDGES)}
        own |= {value for value in room if FINE_EDGES[0] < value < FINE_EDGES[-1]}
        edges[name] = tuple(sorted(float(value) for value in own))
        inside = np.searchsorted(edges[name], middle, side="right")
        weight = counts + 1e-9  # a bin without reference rows stands for its middle
        sums = [np.bincount(inside, weights=w, minlength=len(edges[name]) + 1) for w in (weight * middle, weight)]
        places[name] = sums[0] / np.maximum(sums[1], 1e-12)
        spread[name] = deviation
    return Bins(edges, places, spread)


def distance(column: str, now: Floats, was: Floats, bins: Bins) -> Floats:
    """[...] distances of shares [..., bins], as METHODS of the drift test has them, of binned values."""
    if column in CATEGORICAL:
        return jensen_shannon(now, was)
    steps = np.cumsum(now - was, axis=-1)[..., :-1]
    return np.asarray(np.abs(steps) @ np.diff(bins.places[column]) / bins.spread[column])


def compare(
    now: Mapping[str, Histograms],
    reference: Mapping[str, Histograms],
    bins: Bins,
    policy: DriftPolicy,
    smallest: int,
    classes: Sequence[str],
    seed: int = 0,
) -> list[ScopeDrift]:
    """Overall first, then every site with enough rows. now, reference: per site, over the same bins.

    smallest: what the sites merged below. A site without a reference is left out.
    """
    rows = {site: int(own[COLUMNS[0]].sum()) for site, own in now.items() if site in reference}
    sites = sorted(site for site, count in rows.items() if count > 0)
    judged = [site for site in sites if rows[site] >= policy.site_minimum_rows]
    if not sites:
        return []
    share = policy.false_alarm_per_window / 2.0 / len(COLUMNS)
    rng = np.random.default_rng(seed)
    found: dict[str, list[ColumnDrift]] = {scope: [] for scope in (OVERALL, *judged)}
    for column in COLUMNS:
        here = {site: now[site][column] for site in sites}
        expected, draws = {}, {}
        for site in sites:
            total, was = int(here[site].sum()), reference[site][column]
            expected[site] = _shares(was) * total
            draws[site] = _bootstrap(total, was, column, smallest, policy.replicates, rng)
            if site in judged:
                known = here[site], expected[site], draws[site]
                found[site].append(_column(column, *known, share / len(sites), bins, policy, classes))
        windows, references = (np.sum([draws[site][part] for site in sites], axis=0) for part in (0, 1))
        whole = np.sum(list(here.values()), axis=0), np.sum(list(expected.values()), axis=0), (windows, references)
        found[OVERALL].append(_column(column, *whole, share, bins, policy, classes))
    counts = rows | {OVERALL: sum(rows[site] for site in sites)}
    return [
        ScopeDrift(scope, counts[scope], tuple(columns), is_odd([c.ratio for c in columns], policy))
        for scope, columns in found.items()
    ]


def _bootstrap(
    rows: int, was: Counts, column: str, smallest: int, replicates: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Windows [r, bins] as the site would send them had nothing changed, and references [r, bins] in their size."""
    shares = _shares(was)
    windows = hide_rare(rng.multinomial(rows, shares, size=replicates), smallest, column != "prediction")
    references = rng.multinomial(max(int(was.sum()), 1), shares, size=replicates)
    return windows.astype(np.float64), _shares(references) * rows


def _column(
    column: str,
    now: Counts,
    was: Floats,
    draws: tuple[Floats, Floats],
    probability: float,
    bins: Bins,
    policy: DriftPolicy,
    classes: Sequence[str],
) -> ColumnDrift:
    """One column of one scope. was [bins]: the reference in the window's mix. draws: windows, references, [r, bins]."""
    here, there = _shares(now), _shares(was)
    chance = distance(column, _shares(draws[0]), _shares(draws[1]), bins)
    threshold = max(policy.smallest_effect(column), policy.safety * tail_quantile(chance, probability))
    value = float(distance(column, here, there, bins)) if now.sum() and was.sum() else None
    if column in CATEGORICAL:
        most = int(np.abs(here - there).argmax())
        names = classes if column == "prediction" else _bands()
        what = f"the share of {'predictions of' if column == 'prediction' else 'confidences'} {names[most]}"
        before, after = float(there[most]), float(here[most])
    else:
        what = column.replace("_", " ")
        before, after = (float(shares @ bins.places[column]) for shares in (there, here))
    return ColumnDrift(column, value, threshold, (value or 0.0) / threshold, what, before, after)


def _bands() -> list[str]:
    low, high = CONFIDENCE_BANDS[0], CONFIDENCE_BANDS[-1]
    between = [f"{a:g} to {b:g}" for a, b in pairwise(CONFIDENCE_BANDS)]
    return [f"below {low:g}", *between, f"above {high:g}"]


def _shares(counts: NDArray[np.number]) -> Floats:
    total = counts.sum(axis=-1, keepdims=True)
    return np.asarray(counts / np.maximum(total, 1), dtype=np.float64)
