"""How well the model does on live traffic: from delayed labels where there are some, estimated before they come.

In: a window's rows with their labels so far. Out: accuracy with a Wilson interval, overall and per site, and an
estimate that needs none: the average confidence (Hendrycks & Gimpel, ICLR 2017) less what it was off by on earlier
rows of the same model whose labels have come, the "difference of confidences" of Guillory et al., "Predicting with
Confidence on Unseen Distributions", ICCV 2021. A model that is sure and wrong fools it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from monitoring.traffic import LABEL_COLUMN

ENOUGH_LABELS = 50


@dataclass(frozen=True)
class Accuracy:
    """The share of right predictions among the labelled rows of a scope, with its interval."""

    scope: str
    labelled: int
    value: float
    low: float
    high: float


def accuracies(rows: pd.DataFrame) -> list[Accuracy]:
    """Overall first, then every site that has labels; empty while there is none. The interval is Wilson's (JASA 1927),
    which holds for few rows and near 0 and 1, where the usual one fails.

    rows: columns site, prediction and `label` (NA where nobody has said yet), as TrafficLog.between returns them.
    """
    from scipy.stats import binomtest

    known = rows[rows[LABEL_COLUMN].notna()]
    if known.empty:
        return []
    right = known["prediction"].astype(int) == known[LABEL_COLUMN].astype(int)
    found = []
    for scope, hits in [("overall", right), *right.groupby(known["site"])]:
        interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
        found.append(Accuracy(str(scope), len(hits), float(hits.mean()), float(interval.low), float(interval.high)))
    return found


def overconfidence(labelled: pd.DataFrame) -> float:
    """How far the average confidence lay above the accuracy on rows whose labels have come; 0 without enough rows."""
    known = labelled[labelled[LABEL_COLUMN].notna()]
    if len(known) < ENOUGH_LABELS:
        return 0.0
    right = known["prediction"].astype(int) == known[LABEL_COLUMN].astype(int)
    return float(known["confidence"].mean() - right.mean())


def estimated_accuracy(rows: pd.DataFrame, gap: float = 0.0) -> float:
    """Accuracy to expect before labels come, in [0, 1]: the average confidence less the model's `overconfidence`."""
    return min(1.0, max(0.0, float(rows["confidence"].mean()) - gap))


def labelled_rows(rows: pd.DataFrame) -> int:
    return int(rows[LABEL_COLUMN].notna().sum())
