"""How often the model is right before anybody says so: confidence-based performance estimation.

In: the confidences of a window, and what is known of how often such confidences were right: counts of the held-out rows
the version was judged on, and earlier rows whose labels have come. Out: the accuracy to expect, with an interval, and
whether to believe it. The expected share of right answers is the mean calibrated confidence (Białek et al., "Estimating
Model Performance Under Covariate Shift Without Labels", 2024); the calibration is logistic (Platt, 1999), shrunk to "as
sure as it says", so that few labels correct a little and many a lot.

It holds while only the inputs change, and within what was calibrated on. A model that is sure and wrong fools it, which
is why an estimate says when its calibration has moved, or when the inputs lie outside the reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ENOUGH_LABELS = 50
_Z95 = 1.96
_MOVED_Z = 3.3  # a chance of one in a thousand
_MOVED_SHARE = 0.03  # smaller gaps never count, however significant
_SURE = 1e-4  # confidences are kept so far from 0 and 1: a model's last digits say nothing


@dataclass(frozen=True)
class Known:
    """Answers whose truth is known: confidence [k], how many rows had it [k], how many of these were right [k]."""

    confidence: Floats
    rows: Floats
    right: Floats

    @property
    def total(self) -> float:
        return float(self.rows.sum())

    def __add__(self, other: Known) -> Known:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Known(*(np.concatenate(pair) for pair in pairs))


NOTHING = Known(np.zeros(0), np.zeros(0), np.zeros(0))


def known_of_bins(bins: Sequence[Sequence[float]]) -> Known:
    """From a version's evaluation: [3, bins], rows, their summed confidence, and how many were right."""
    rows, confidence, right = np.asarray(bins, dtype=np.float64)
    there = rows > 0
    return Known(confidence[there] / rows[there], rows[there], right[there])


@dataclass(frozen=True)
class Calibration:
    """The chance that an answer of confidence c is right: sigmoid(weights . [1, logit c]), and how sure that is."""

    weights: Floats  # [2]
    covariance: Floats  # [2, 2]

    def chances(self, confidence: Floats) -> Floats:
        return np.asarray(1.0 / (1.0 + np.exp(-_features(confidence) @ self.weights)))

    def mean(self, confidence: Floats, rows: Floats) -> tuple[float, float]:
        """The expected share of right answers, and the standard deviation of the share that will be seen."""
        chances, total = self.chances(confidence), rows.sum()
        spread = rows * chances * (1.0 - chances)
        slope = (spread @ _features(confidence)) / total
        variance = spread.sum() / total**2 + slope @ self.covariance @ slope
        return float(rows @ chances / total), math.sqrt(float(variance))


def calibrate(known: Known) -> Calibration:
    """The posterior mode and its curvature, from a prior of N(1, 1) on the slope and N(0, 1) on the offset."""
    x, prior = _features(known.confidence), np.array([0.0, 1.0])
    weights = prior.copy()
    for _ in range(25):
        chances = 1.0 / (1.0 + np.exp(-x @ weights))
        curvature = (x.T * (known.rows * chances * (1.0 - chances))) @ x + np.eye(2)
        step = np.linalg.solve(curvature, x.T @ (known.right - known.rows * chances) - (weights - prior))
        # Newton's method may overshoot where the sigmoid is flat.
        weights = weights + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if float(np.abs(step).max()) < 1e-8:
            break
    return Calibration(weights, np.linalg.inv(curvature))


def moved(calibration: Calibration, recent: Known) -> str:
    """Whether labels contradict a calibration that was made without them: why, in a sentence, or empty."""
    if recent.total < ENOUGH_LABELS:
        return ""
    expected, deviation = calibration.mean(recent.confidence, recent.rows)
    seen = float(recent.right.sum()) / recent.total
    if abs(seen - expected) <= max(_MOVED_SHARE, _MOVED_Z * deviation):
        return ""
    return f"of {recent.total:.0f} rows with labels {seen:.0%} are right, where {expected:.0%} was to be expected"


@dataclass(frozen=True)
class Estimate:
    """The accuracy to expect of a window, with a 95% interval. doubts: why not to believe it; empty: believe it."""

    value: float
    low: float
    high: float
    calibrated_on: int  # rows
    doubts: tuple[str, ...]


def estimate(confidence: Floats, held_out: Known, recent: Known, moved_inputs: str = "") -> Estimate:
    """The accuracy to expect of a window's answers, confidence [n].

    held_out: of the version's evaluation. recent: of its earlier traffic. moved_inputs: what of the window lies
    outside the reference, in words. Where labels contradict the held-out rows, they alone are believed from then on.
    """
    doubts = []
    known = held_out + recent
    if held_out.total and (contradiction := moved(calibrate(held_out), recent)):
        known = recent
        doubts.append(contradiction)
    if known.total < ENOUGH_LABELS:
        doubts.append(f"calibrated on {known.total:.0f} rows alone")
    if moved_inputs:
        doubts.append(f"outside the reference: {moved_inputs}")
    value, deviation = calibrate(known).mean(confidence, np.ones(len(confidence)))
    low, high = max(0.0, value - _Z95 * deviation), min(1.0, value + _Z95 * deviation)
    return Estimate(value, low, high, int(known.total), tuple(doubts))


def _features(confidence: Floats) -> Floats:
    """[k, 2]: one, and the logit."""
    inside = np.clip(confidence, _SURE, 1.0 - _SURE)
    return np.stack([np.ones_like(inside), np.log(inside / (1.0 - inside))], axis=1)
