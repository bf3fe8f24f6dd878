"""How far apart reference and traffic are when nothing has changed: the thresholds' source.

In: a model version's reference rows per site. Out: per scope (overall, each site) and column the noise of the
column's distance, such that a window like the reference is odd with at most the stated probability. The columns are
calibrated jointly, after Westfall & Young, "Resampling-Based Multiple Testing", 1993: brightness and contrast err
together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from monitoring.bins import Cuts, cuts_of, is_numeric
from monitoring.drift import OVERALL, SMALLEST_NORM, DriftPolicy, Floats, jensen_shannon

_TAIL = 0.9  # quantile above which the tail of the bootstrap is taken as exponential


@dataclass(frozen=True)
class Calibration:
    """Noise of every column's distance per scope, in units of sqrt(1 / window rows + 1 / reference rows).

    Both distances shrink with the root of the rows, so one calibration serves windows of any size and site mix.
    cuts: per scope and column where its bins part, the same for all windows: their counts can be added.
    """

    factors: Mapping[str, Mapping[str, float]]
    cuts: Mapping[str, Mapping[str, Cuts]] = field(default_factory=dict)

    def threshold(self, policy: DriftPolicy, scope: str, column: str, rows: int, reference_rows: float) -> float:
        factor = self.factors.get(scope, {}).get(column, 0.0)
        return max(policy.smallest_effect(column), factor * _noise_unit(rows, reference_rows))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def calibrate(reference: Mapping[str, pd.DataFrame], policy: DriftPolicy, seed: int = 0) -> Calibration:
    """Bootstrap windows of the reference against bootstrap references, overall and for every site.

    Drawing the reference again too is what keeps a small one honest: its own error is the same in every window.
    Half of `policy.false_alarm_per_window` goes to the overall scope, the other half is shared by the sites; so small
    a probability is read off an exponential tail, which is heavier than the distances' own.

    reference: per site, frames that have been through `drift.clean`; none empty.
    """
    rng = np.random.default_rng(seed)
    sites = sorted(reference)
    share = policy.false_alarm_per_window / 2.0
    whole = pd.concat([reference[site] for site in sites], ignore_index=True)
    factors = {OVERALL: _scope(whole, policy.window_rows, share, policy, rng)}
    site_rows = max(policy.site_minimum_rows, policy.window_rows // len(sites))
    for site in sites:
        factors[site] = _scope(reference[site], site_rows, share / len(sites), policy, rng)
    frames = {OVERALL: whole, **reference}
    cuts = {scope: {name: cuts_of(frame[name], policy.bins) for name in frame} for scope, frame in frames.items()}
    return Calibration(factors, cuts)


def _scope(
    frame: pd.DataFrame, rows: int, probability: float, policy: DriftPolicy, rng: np.random.Generator
) -> dict[str, float]:
    if len(frame) > policy.reference_rows:
        frame = frame.iloc[np.sort(rng.permutation(len(frame))[: policy.reference_rows])]
    count = len(frame)
    even = np.full(count, 1.0 / count)
    window = rng.multinomial(rows, even, size=policy.replicates).astype(np.float64)
    again = rng.multinomial(count, even, size=policy.replicates).astype(np.float64)
    columns = list(frame)
    distances = {name: _distances(frame[name], window, again) for name in columns}
    spread = {name: float(np.quantile(values, _TAIL)) for name, values in distances.items()}
    moving = [name for name in columns if spread[name] > 0.0]
    if not moving:
        return dict.fromkeys(columns, 0.0)
    ratios = np.sort(np.stack([distances[name] / spread[name] for name in moving]), axis=0)[::-1]
    # A window is odd when this figure passes 1 once the ratios are divided by the common factor we look for.
    oddness = ratios[0] / policy.large_factor
    if len(moving) >= policy.odd_columns:
        oddness = np.maximum(oddness, ratios[policy.odd_columns - 1])
    factor = policy.safety * _tail_quantile(oddness, probability) / _noise_unit(rows, count)
    factors = {name: factor * spread[name] for name in columns}
    for name in (name for name in columns if not is_numeric(frame[name])):
        factors[name] = max(factors[name], policy.safety * _rare_class_noise(frame[name], probability))
    return factors


def _noise_unit(rows: int, reference_rows: float) -> float:
    return math.sqrt(1.0 / max(rows, 1) + 1.0 / max(reference_rows, 1.0))


def _rare_class_noise(column: pd.Series, probability: float) -> float:
    """What a bootstrap cannot see: classes that the reference happens not to hold.

    8 times the Jensen-Shannon divergence of two samples over k classes is asymptotically chi-squared with k - 1
    degrees of freedom, in the same unit of noise. One class more than was seen is allowed for.
    """
    from scipy.stats import chi2

    return math.sqrt(float(chi2.isf(probability, max(1, column.nunique()))) / 8.0)


def _tail_quantile(values: Floats, probability: float) -> float:
    """The value passed with that probability: peaks over a threshold with an exponential tail."""
    if probability >= 1.0 - _TAIL:
        return float(np.quantile(values, 1.0 - probability))
    start = float(np.quantile(values, _TAIL))
    over = values[values > start]
    excess = float((over - start).mean()) if len(over) else 0.0
    return start + excess * math.log((1.0 - _TAIL) / probability)


def _distances(column: pd.Series, window: Floats, again: Floats) -> Floats:
    """[replicates] distances of one column. window, again: [replicates, rows] how often each row was drawn."""
    there = column.notna().to_numpy()
    if not there.any():
        return np.zeros(len(window))
    values = column[there]
    now, was = window[:, there], again[:, there]
    now = now / np.maximum(now.sum(axis=1, keepdims=True), 1.0)
    was = was / np.maximum(was.sum(axis=1, keepdims=True), 1.0)
    if not is_numeric(column):
        codes, labels = pd.factorize(values, sort=True)
        classes = np.eye(len(labels))[codes]
        return jensen_shannon(now @ classes, was @ classes)
    numbers = values.to_numpy(dtype=np.float64)
    order = np.argsort(numbers, kind="stable")
    gaps = np.diff(numbers[order])
    norm = max(float(numbers.std()), SMALLEST_NORM)
    steps = np.cumsum((now - was)[:, order], axis=1)[:, :-1]
    return np.asarray(np.abs(steps) @ gaps / norm, dtype=np.float64)
