"""Evidence from labels that came later: does the model err more than it was measured to, and than it did before?

In: windows of a version's traffic, of which some rows have a label by now, and how often the version was right on the
rows that the gate judged it on. Out: of all rows and of every site that is compared, for every window since which the
version may err more there, the logarithm of an e-value.

The hypothesis is "the chance of a wrong answer is at most the tolerated one". A bet against it that pays a likelihood
ratio never gains on average while it holds, however often one looks (Waudby-Smith & Ramdas, "Estimating means of
bounded random variables by betting", 2024); of several bets the mean is taken. Tolerated is the larger of what was
measured and what the windows before showed, as upper bounds, and a margin. So a version that erred from its first day
has not changed: that its estimates are wrong is told beside them, and is no drift. Labels reach a window long after
its row was written, so they are counted anew at every look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from monitoring.drift import OVERALL
from monitoring.estimate import ENOUGH_LABELS, Known
from monitoring.performance import labelled_rows

Floats = NDArray[np.float64]

ERRORS = "errors"
_WORSE = (0.05, 0.1, 0.2, 0.4)
"""How much more often than tolerated the bets say that the model errs."""
_MOST = 0.95  # of the tolerated share: beyond it nothing is left to bet on


def with_errors(
    engine: sa.Engine, windows: Sequence[Mapping[str, Any]], measured: Known, margin: float
) -> list[Mapping[str, Any]]:
    """The windows, oldest first, with what labels say of their answers beside the columns of all their rows."""
    if not windows or not measured.total:
        return list(windows)
    errors = measured.total - float(measured.right.sum())
    was, tolerated = errors / measured.total, min(_MOST, _upper_bound(errors, measured.total) + margin)
    answers = _answers(engine, windows)
    return [_with_columns(window, answers, was, tolerated) for window in windows]


def log_since_errors(wrong: Floats, right: Floats, tolerated: float, margin: float, persistence: int) -> Floats:
    """[windows] of each window the logarithm of the evidence that since then the model errs more than tolerated.

    wrong, right: [windows] labelled rows. tolerated: by what was measured, the margin in it. As the evidence of columns
    does, it has to stand without the `persistence - 1` windows that speak loudest of it; and it needs ENOUGH_LABELS of
    the windows before, which say what is usual.
    """
    found = np.full(len(wrong), -np.inf)
    for start in range(1, len(wrong) - persistence + 1):
        before = wrong[:start].sum() + right[:start].sum()
        if before < ENOUGH_LABELS:
            continue
        usual = _upper_bound(wrong[:start].sum(), before) + margin
        least = min(_MOST, max(tolerated, usual))
        rates = np.minimum(least + np.asarray(_WORSE), 0.99)
        up, down = np.log(rates / least), np.log((1.0 - rates) / (1.0 - least))
        own = wrong[start:, None] * up + right[start:, None] * down  # [windows, bets]
        loudest = np.argsort(own.max(axis=1))[::-1][: persistence - 1]
        total = own.sum(axis=0)
        found[start] = min(_mean(total), _mean(total - own[loudest].sum(axis=0)))
    return found


def _mean(log_values: Floats) -> float:
    return float(np.logaddexp.reduce(log_values) - np.log(len(log_values)))


def _upper_bound(wrong: float, rows: float) -> float:
    """Of the share, Wilson's of 95%: at 0 of few rows it is not 0."""
    from scipy.stats import binomtest

    found = binomtest(round(wrong), round(rows), alternative="less").proportion_ci(0.95, method="wilson")
    return float(found.high)


@dataclass(frozen=True)
class _Answers:
    """Those with a label by now, of which the last one counts. seqs, sites, right: [answers]."""

    seqs: NDArray[np.int64]
    sites: NDArray[np.str_]
    right: NDArray[np.bool_]

    def of(self, window: Mapping[str, Any], scope: str) -> tuple[int, int]:
        """Wrong and right ones of a window, at a site or overall."""
        inside = (self.seqs >= window["from_seq"]) & (self.seqs < window["to_seq"])
        own = self.right[inside if scope == OVERALL else inside & (self.sites == scope)]
        return int((~own).sum()), int(own.sum())


def _answers(engine: sa.Engine, windows: Sequence[Mapping[str, Any]]) -> _Answers:
    first, last = int(windows[0]["from_seq"]), int(windows[-1]["to_seq"])
    rows = labelled_rows(engine, first, last, int(windows[-1]["model_version"]))
    given = [row for row in rows if row.abstained is None]
    return _Answers(
        np.array([row.seq for row in given], dtype=np.int64),
        np.array([row.site for row in given], dtype=np.str_),
        np.array([row.right for row in given], dtype=np.bool_),
    )


def _with_columns(window: Mapping[str, Any], answers: _Answers, was: float, tolerated: float) -> Mapping[str, Any]:
    scopes = dict(window["evidence"].get("scopes", {}))
    for scope, seen in scopes.items():
        wrong, right = answers.of(window, scope)
        if wrong + right:
            now = wrong / (wrong + right)
            column = {
                "column": ERRORS, "value": None, "threshold": tolerated, "ratio": now / tolerated,
                "what": "the share of wrong answers", "was": was, "now": now, "spread": None, "tally": None,
                "labelled": [wrong, right],
            }  # fmt: skip
            scopes[scope] = seen | {"columns": seen["columns"] | {ERRORS: column}}
    return {**window, "evidence": window["evidence"] | {"scopes": scopes}}
