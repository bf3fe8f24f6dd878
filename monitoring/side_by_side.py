"""Two versions on the same live requests: one answered, the other predicted beside it.

In: the log's predictions, shadow predictions and delayed labels. Out: how often the two agree, which is right more
often where labels have come, which fails, and which is slower. Because both saw the same rows, a drift of the traffic
speaks neither for nor against one of them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import sqlalchemy as sa

from monitoring.database import LABELS, PREDICTIONS, SHADOW_PREDICTIONS

NEWEST_ROWS = 5000
"""Pairs that are judged, newest first, and one tenth of the log's rows that are looked through for them."""
TIMED_BATCHES = 8
"""Fewer say nothing of speed: on a busy machine one batch may take ten times as long as the next."""


@dataclass(frozen=True)
class Evidence:
    """What is known of `new` beside `old`. Shares in [0, 1]; NaN where there is nothing to say.

    rows: both predicted, or one failed. answered: of them by `new`. failed: rows that `new` failed on. labelled: rows
    with a label on which both answered. score, score_before: their shares of right answers. gain: the difference,
    gain_high what it is at most, at the confidence asked for. slower: time of `new` over that of `old`, the median of
    the batches that were timed; slower_low: three of four batches were slower than this.
    """

    rows: int
    answered: int
    failed: int
    agreement: float
    agreement_high: float
    labelled: int
    score: float
    score_before: float
    gain: float
    gain_high: float
    error_share: float
    error_low: float
    slower: float
    slower_low: float

    def figures(self) -> dict[str, Any]:
        """As a row of the ledger keeps it: rounded, without what is not known."""
        return {
            name: round(value, 4) for name, value in asdict(self).items() if isinstance(value, int) or value == value
        }


def pairs(engine: sa.Engine, new: int, old: int, from_seq: int, rows: int = NEWEST_ROWS) -> pd.DataFrame:
    """The newest `rows` predictions after `from_seq` that both versions saw, newest first.

    Columns: seq, answered_by, new, old (classes; NA where that version failed), label (NA where none came), slower.
    """
    p, s = PREDICTIONS.c, SHADOW_PREDICTIONS.c
    with engine.connect() as connection:
        last = connection.execute(sa.select(sa.func.max(p.seq))).scalar_one() or 0
        start = max(from_seq, last - 10 * rows)
        both = (
            sa.select(p.seq, p.prediction_id, p.model_version, p.prediction, s.prediction.label("beside"), s.slower)
            .join(SHADOW_PREDICTIONS, s.prediction_id == p.prediction_id)
            .where(p.seq > start, ((p.model_version == new) & (s.model_version == old))
                   | ((p.model_version == old) & (s.model_version == new)))
            .order_by(p.seq.desc())
            .limit(rows)
        )  # fmt: skip
        found = connection.execute(both).all()
        chosen = both.subquery()
        told = (
            sa.select(LABELS.c.prediction_id, LABELS.c.label)
            .join(chosen, chosen.c.prediction_id == LABELS.c.prediction_id)
            .order_by(LABELS.c.at, LABELS.c.source)
        )
        labels = {row.prediction_id: row.label for row in connection.execute(told)}
    answered = np.array([row.model_version for row in found], dtype=np.int64)
    own = answered == new
    said = pd.array([row.prediction for row in found], dtype="Int64")
    beside = pd.array([row.beside for row in found], dtype="Int64")
    slower = np.array([np.nan if row.slower is None else row.slower for row in found], dtype=np.float64)
    return pd.DataFrame(
        {
            "seq": [row.seq for row in found],
            "answered_by": answered,
            "new": pd.Series(said).where(own, pd.Series(beside)),
            "old": pd.Series(beside).where(own, pd.Series(said)),
            "label": pd.array([labels.get(row.prediction_id) for row in found], dtype="Int64"),
            "slower": np.where(own, 1.0 / slower, slower),
        }
    )


def weigh(seen: pd.DataFrame, new: int, confidence: float) -> Evidence:
    """The evidence of `pairs`; bounds are Clopper & Pearson's (Biometrika 1934), one-sided at `confidence`."""
    failed = seen["new"].isna()
    times = seen["slower"].dropna().unique()  # the rows of a batch share theirs
    both = seen[~failed & seen["old"].notna()]
    agree = int((both["new"] == both["old"]).sum())
    known = both[both["label"].notna()]
    right, before = known["new"] == known["label"], known["old"] == known["label"]
    won, lost = int((right & ~before).sum()), int((before & ~right).sum())
    labelled = len(known)
    # Only rows on which one is right and the other wrong tell them apart.
    lost_low = bound(lost, won + lost, confidence, "low")
    gain_high = math.nan if not labelled else 0.0 if not won + lost else (won + lost) / labelled * (1 - 2 * lost_low)
    return Evidence(
        rows=len(seen),
        answered=int((seen["answered_by"] == new).sum()),
        failed=int(failed.sum()),
        agreement=_share(agree, len(both)),
        agreement_high=bound(agree, len(both), confidence, "high"),
        labelled=labelled,
        score=_share(int(right.sum()), labelled),
        score_before=_share(int(before.sum()), labelled),
        gain=_share(won - lost, labelled),
        gain_high=gain_high,
        error_share=_share(int(failed.sum()), len(seen)),
        error_low=bound(int(failed.sum()), len(seen), confidence, "low"),
        slower=float(np.median(times)) if len(times) >= TIMED_BATCHES else math.nan,
        slower_low=float(np.quantile(times, 0.25)) if len(times) >= TIMED_BATCHES else math.nan,
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def bound(part: int, whole: int, confidence: float, side: Literal["low", "high"]) -> float:
    """One-sided bound of a share of which `part` of `whole` were seen; NaN of nothing."""
    from scipy.stats import beta

    if not whole:
        return math.nan
    if side == "low":
        return 0.0 if part == 0 else float(beta.ppf(1 - confidence, part, whole - part + 1))
    return 1.0 if part == whole else float(beta.ppf(confidence, part + 1, whole - part))
