"""How long the truth takes: hours from a prediction to its label, and how many rows have one by now.

In: a stretch of the log. Out: three numbers. The hours are those of the labels that have come, so of fresh traffic they
are too short: what takes long is not there yet. The share says how much that is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from monitoring.database import LABELS, PREDICTIONS


@dataclass(frozen=True)
class LabelDelay:
    """rows: of the stretch; labelled: of them, by now. Hours are NaN while there is no label."""

    rows: int
    labelled: int
    median_hours: float
    slow_hours: float  # 90% are quicker

    @property
    def share(self) -> float:
        return self.labelled / self.rows if self.rows else 0.0


def label_delay(engine: sa.Engine, from_seq: int, to_seq: int) -> LabelDelay:
    """Of the rows with from_seq <= seq < to_seq; of several labels of a row its first counts."""
    p = PREDICTIONS.c
    inside = (p.seq >= from_seq) & (p.seq < to_seq)
    first = (
        sa.select((sa.func.min(LABELS.c.at) - p.at).label("seconds"))
        .join(PREDICTIONS, p.prediction_id == LABELS.c.prediction_id)
        .where(inside)
        .group_by(p.prediction_id, p.at)
    )
    with engine.connect() as connection:
        rows = int(connection.execute(sa.select(sa.func.count()).select_from(PREDICTIONS).where(inside)).scalar_one())
        hours = np.array([max(0.0, float(each)) / 3600.0 for each in connection.execute(first).scalars()])
    if not len(hours):
        return LabelDelay(rows, 0, math.nan, math.nan)
    return LabelDelay(rows, len(hours), float(np.quantile(hours, 0.5)), float(np.quantile(hours, 0.9)))
