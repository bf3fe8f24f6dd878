"""Has a window moved away from what its model was measured on? Statistics, judgement, Evidently reports.

In: a window's rows and, per site, the reference rows of the model version that served them. Out: for the whole window
and for each site how far every column moved, against which threshold, and whether that makes the window odd.

Numeric columns are compared by the Wasserstein distance in units of the reference's standard deviation, the
predicted class and the band of its confidence by the Jensen-Shannon distance: the figures of Evidently's methods of
these names, computed here with scipy so that a look at every site costs milliseconds. The thresholds come from the
reference itself (calibration.py).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from models.quality import QUALITY_COLUMNS
from monitoring.bins import Tally, cuts_of, is_numeric, tally

if TYPE_CHECKING:
    from evidently.core.report import Snapshot

    from monitoring.calibration import Calibration

NUMERIC = (*QUALITY_COLUMNS, "embedding_distance")
CATEGORICAL = ("confidence", "prediction")
COLUMNS = (*NUMERIC, *CATEGORICAL)
CONFIDENCE_BANDS = (0.5, 0.7, 0.9, 0.99)
"""Confidence is watched in bands: a good model's differ from 1 by so little that in units of their standard
deviation a handful of hard pictures at one site would weigh more than darkness."""
OVERALL = "overall"
_KINDS = {"prediction": "predictions of", "confidence": "confidences"}
Floats = NDArray[np.float64]
SMALLEST_NORM = 0.001  # Evidently's own floor under the standard deviation
_NO_ALARM = 10.0
"""A logarithm of evidence about as large as an alarm's level with its correction for many columns and sites."""


class DriftPolicy(BaseModel):
    """What a window is and when it is odd.

    A window is odd when in one scope (all its rows, or one site's) `odd_columns` columns exceed their thresholds,
    or one column does `large_factor` times. The thresholds are set so that traffic like the reference is odd with
    at most the probability `false_alarm_per_window`, before `safety` widens them further.
    """

    window_rows: int = Field(250, ge=50, le=20_000)
    minimum_rows: int = Field(100, ge=20, description="what a window closed for its age must hold at least")
    max_age_s: float = Field(3600.0, gt=0, description="in thin traffic a window closes after this long")
    lateness_s: float = Field(0.5, ge=0, le=30, description="rows younger than this may still have slower neighbours")
    site_minimum_rows: int = Field(15, ge=10, description="sites with fewer rows in a window are not judged alone")
    false_alarm_per_window: float = Field(0.01, gt=0, lt=0.5)
    safety: float = Field(1.5, ge=1, description="widens the thresholds: a reference is never quite the traffic")
    minimum_effect: float = Field(0.1, gt=0, description="smaller distances never count, however significant")
    embedding_effect: float = Field(0.5, gt=0, description="the same for the embedding, fitted on the reference's rows")
    confidence_effect: float = Field(0.2, gt=0, description="the same for the confidence, trained on some of them")
    odd_columns: int = Field(2, ge=1)
    large_factor: float = Field(3.0, gt=1)
    missing_share: float = Field(0.1, gt=0, le=1, description="share of unusable values that itself counts as drift")
    replicates: int = Field(500, ge=100, description="bootstrap windows behind the thresholds")
    reference_rows: int = Field(2000, ge=100, le=20_000, description="rows of the reference in one comparison")
    site_reports: int = Field(1, ge=0, description="odd sites of a window, worst first, that get a report of their own")
    bins: int = Field(10, ge=2, le=50, description="of a numeric column, from whose counts the alarm's evidence comes")
    keep_reports: int = Field(500, ge=10, description="newest windows kept on the dashboard")
    keep_full: int = Field(20, ge=1, description="newest odd windows whose reports keep their plots (0.5 MB each)")

    def smallest_effect(self, column: str) -> float:
        """The distance below which a column never counts. Fresh rows always lie a bit off what was fitted."""
        fitted = {"embedding_distance": self.embedding_effect, "confidence": self.confidence_effect}
        return fitted.get(column, self.minimum_effect)

    def weight(self, column: str, numeric: bool, reference_rows: float) -> tuple[float, float]:
        """How many rows the reference of a column counts as evidence, and how many it may with earlier windows.

        A reference is never quite the traffic: beside its own error, which `safety` widens, the traffic may lie off
        it by the smallest effect. And against the second number of rows a change that is no larger than the smallest
        effect never makes an alarm, however long it lasts.
        """
        # The Jensen-Shannon distance is smaller than the standardised (chi) one by the root of 8.
        effect = self.smallest_effect(column) * (1.0 if numeric else math.sqrt(8.0))
        rows = 1.0 / (self.safety**2 / max(reference_rows, 1.0) + effect**2)
        return rows, 2.0 * _NO_ALARM / effect**2


@dataclass(frozen=True)
class ColumnDrift:
    """How far one column moved; value is None where there was nothing to compare."""

    column: str
    value: float | None
    threshold: float
    ratio: float  # 1 is the threshold; a lack of usable values counts like a distance
    what: str  # what was/now speak of: the column's mean, or the share of the class that moved most
    was: float
    now: float
    spread: float | None = None  # its standard deviation by the reference's; None of classes and constants
    tally: Tally | None = None


@dataclass(frozen=True)
class ScopeDrift:
    """What a window showed in one scope: `overall`, or a site's name."""

    scope: str
    rows: int
    columns: tuple[ColumnDrift, ...]
    odd: bool

    @property
    def worst(self) -> float:
        return max((column.ratio for column in self.columns), default=0.0)


def clean(
    frame: pd.DataFrame, numeric: Sequence[str] = NUMERIC, categorical: Sequence[str] = CATEGORICAL
) -> pd.DataFrame:
    """These columns alone, as Evidently can take them: finite floats or NaN, classes as text or missing."""
    out = pd.DataFrame(index=range(len(frame)))
    for name in (*numeric, *categorical):
        values = frame[name] if name in frame else pd.Series(np.nan, index=frame.index)
        if name in categorical and name != "confidence":
            out[name] = pd.Series([None if pd.isna(value) else str(value) for value in values], dtype="object")
            continue
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        numbers = np.where(np.isfinite(numbers), numbers, np.nan)
        out[name] = confidence_bands(numbers) if name == "confidence" else numbers
    return out


def confidence_bands(confidence: Floats) -> pd.Series:
    """The band of each confidence in words, missing where it is NaN."""
    between = (f"{low:g} to {high:g}" for low, high in pairwise(CONFIDENCE_BANDS))
    names = [f"below {CONFIDENCE_BANDS[0]:g}", *between, f"above {CONFIDENCE_BANDS[-1]:g}"]
    band = np.searchsorted(CONFIDENCE_BANDS, confidence, side="right")
    return pd.Series([None if np.isnan(c) else names[b] for c, b in zip(confidence, band, strict=True)], dtype="object")


def mixed_reference(
    reference: Mapping[str, pd.DataFrame], mix: Mapping[str, int], rows: int
) -> tuple[pd.DataFrame, float]:
    """Reference rows in the site proportions of a window, and how many independent rows they are worth.

    So a day on which one site sends more pictures is not taken for drift. Each site's rows are repeated as whole, and
    only the remainder is drawn (with a fixed seed), which adds next to no noise. The worth is Kish's effective sample
    size of the stratified sample.
    """
    known = {site: count for site, count in mix.items() if count > 0 and len(reference.get(site, ())) > 0}
    total = sum(known.values())
    parts, variance = [], 0.0
    for site in sorted(known):
        share, frame = known[site] / total, reference[site]
        times, rest = divmod(max(1, round(rows * share)), len(frame))
        drawn = np.random.default_rng(rest).permutation(len(frame))[:rest]
        parts.append(frame.iloc[np.concatenate([np.tile(np.arange(len(frame)), times), np.sort(drawn)])])
        variance += share**2 / len(frame)
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS)), 0.0
    return pd.concat(parts, ignore_index=True), 1.0 / variance


def distance(reference: pd.Series, current: pd.Series) -> float:
    """The distance of two columns without missing values, equal to Evidently's of the same method."""
    if not is_numeric(reference):
        was, now = _shares(reference, current)
        return float(jensen_shannon(now.to_numpy(), was.to_numpy()))
    from scipy.stats import wasserstein_distance

    norm = max(float(np.std(reference.to_numpy())), SMALLEST_NORM)
    return float(wasserstein_distance(reference.to_numpy(), current.to_numpy())) / norm


def jensen_shannon(now: Floats, was: Floats) -> Floats:
    """The distances [...] of shares [..., classes]. Scipy's is NaN where two differ by a rounding error."""
    from scipy.special import rel_entr

    middle = (now + was) / 2.0
    divergence = rel_entr(now, middle).sum(axis=-1) + rel_entr(was, middle).sum(axis=-1)
    return np.asarray(np.sqrt(np.maximum(divergence, 0.0) / 2.0))


def _shares(*columns: pd.Series) -> list[pd.Series]:
    """The share of every class in each column, all in the same order."""
    labels = sorted({label for column in columns for label in column})
    return [column.value_counts(normalize=True).reindex(labels, fill_value=0.0) for column in columns]


def compare(
    scope: str,
    current: pd.DataFrame,
    reference: pd.DataFrame,
    worth: float,
    calibration: Calibration,
    policy: DriftPolicy,
    columns: Sequence[str] = COLUMNS,
) -> ScopeDrift:
    """How far each column of a scope moved, and whether that is odd. Both frames have been through `clean`."""

    def moved(name: str) -> ColumnDrift:
        now, was = current[name].dropna(), reference[name].dropna()
        missing = 1.0 - len(now) / max(len(current), 1)
        threshold = calibration.threshold(policy, scope, name, len(now), worth)
        value = distance(was, now) if len(now) and len(was) else None
        ratio = (value or 0.0) / threshold
        numeric = is_numeric(reference[name])
        cuts = calibration.cuts.get(scope, {}).get(name) or cuts_of(reference[name], policy.bins)
        bins = tally(current[name], reference[name], cuts, *policy.weight(name, numeric, worth))
        spread = None
        if numeric and len(now) and len(was) and (before := float(np.std(was.to_numpy()))) > SMALLEST_NORM:
            spread = float(np.std(now.to_numpy())) / before
        if missing > policy.missing_share and missing / policy.missing_share > ratio:
            what = f"the share of missing {name.replace('_', ' ')}"
            ratio, words = missing / policy.missing_share, (what, float(reference[name].isna().mean()), missing)
        else:
            words = _in_words(name, was, now)
        return ColumnDrift(name, value, threshold, ratio, *words, spread=spread, tally=bins)

    drifts = tuple(moved(name) for name in columns)
    return ScopeDrift(scope, len(current), drifts, is_odd([d.ratio for d in drifts], policy))


def is_odd(ratios: Sequence[float], policy: DriftPolicy) -> bool:
    return sum(r > 1.0 for r in ratios) >= policy.odd_columns or any(r > policy.large_factor for r in ratios)


def _in_words(column: str, was: pd.Series, now: pd.Series) -> tuple[str, float, float]:
    """What changed in one number that a person can picture, before and now."""
    if not len(was) or not len(now):
        return column.replace("_", " "), 0.0, 0.0
    if not is_numeric(was):
        before, after = _shares(was, now)
        most = str((after - before).abs().idxmax())
        kind = _KINDS.get(column, column.replace("_", " "))
        return f"the share of {kind} {most}", float(before[most]), float(after[most])
    return column.replace("_", " "), float(was.mean()), float(now.mean())


def report(drift: ScopeDrift, current: pd.DataFrame, reference: pd.DataFrame, at: float) -> Snapshot | None:
    """Evidently's report on one scope of a window; None where no column can be compared.

    Every method and threshold is named: left to itself, Evidently changes both at 1,000 reference rows. Columns
    without a usable value are left out, because it raises on them.
    """
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    there = [column for column in drift.columns if column.value is not None]
    if not there:
        return None
    names = [column.column for column in there]
    definition = DataDefinition(
        numerical_columns=[n for n in names if is_numeric(reference[n])],
        categorical_columns=[n for n in names if not is_numeric(reference[n])],
    )
    method = {True: "wasserstein", False: "jensenshannon"}
    metrics = [
        ValueDrift(column=c.column, method=method[is_numeric(reference[c.column])], threshold=c.threshold)
        for c in there
    ]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # correlations of constant columns
        return Report(metrics, include_tests=True).run(
            Dataset.from_pandas(current[names], definition),
            Dataset.from_pandas(reference[names], definition),
            timestamp=datetime.fromtimestamp(at),  # naive local time, as Evidently's own clock and its UI have it
        )
