"""How well the model does on live traffic, from delayed labels. What to expect before they come: estimate.py.

In: a window's rows with their labels so far. Out: accuracy with a Wilson interval, overall and per site.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from monitoring.database import LABELS, PREDICTIONS
from monitoring.estimate import Known
from monitoring.traffic import LABEL_COLUMN


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


def labelled_answers(engine: sa.Engine, from_seq: int, to_seq: int, version: int) -> Known:
    """The answers of a version with from_seq <= seq < to_seq whose label has come; the last label of a row counts."""
    rows = labelled_rows(engine, from_seq, to_seq, version)
    table = np.array([(row.confidence, row.right) for row in rows], dtype=np.float64).reshape(-1, 2)
    return Known(table[:, 0], np.ones(len(table)), table[:, 1])


def labelled_rows(engine: sa.Engine, from_seq: int, to_seq: int, version: int) -> list[sa.Row[Any]]:
    """Of the same answers seq, site, confidence, whether they were `right`, and why they were `abstained` from."""
    p = PREDICTIONS.c
    known = (
        sa.select(p.seq, p.site, p.confidence, p.abstained, (p.prediction == LABELS.c.label).label("right"))
        .join(PREDICTIONS, p.prediction_id == LABELS.c.prediction_id)
        .where((p.seq >= from_seq) & (p.seq < to_seq) & (p.model_version == version))
        .order_by(LABELS.c.at, LABELS.c.source)
    )
    with engine.connect() as connection:
        return list({row.seq: row for row in connection.execute(known)}.values())
