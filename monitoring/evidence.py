"""Evidence that a column has moved, which adds up over windows and may be looked at as often as one likes.

In: how many rows of each window fell into each bin of a column, and what the reference leads one to expect. Out: an
e-value for every window at which a change may have begun; their sum is an e-detector (Shin, Ramdas & Rinaldo,
"E-detectors: A Nonparametric Framework for Sequential Change Detection", 2023): on stable traffic it passes a level
c after c windows or more on average.

The e-value is a likelihood ratio. Under "nothing has changed" the shares of the bins lie around those of the reference
and of the windows before, as far as so many rows leave open (a Dirichlet distribution), the same in all windows: so
the error of a small reference, which every window shares, never adds up to an alarm. "It has changed" says the same
with a wider spread, of which several are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_WIDER = (4.0, 16.0, 64.0)
"""How much less sure of the reference's shares the alternatives are: small, middling and large changes."""
_PRIOR = 0.5  # Jeffreys' prior: rows that every bin is given beside the reference's


@dataclass(frozen=True)
class Binned:
    """Columns of some windows in time order, with as many bins each. The last bin is of what has no value.

    counts: [columns, windows, bins] rows. expected: [columns, windows, bins] shares that the reference leads one to
    expect, which change with the window's mix of sites. worth: [columns, windows] how many independent rows stand
    behind them. limit: [columns] so many rows are never exceeded by reference and earlier windows together: what is
    too small to be worth an alarm then stays below one. ordered: the bins but the last stand in order, so that they
    can shift.
    """

    counts: Floats
    expected: Floats
    worth: Floats
    limit: Floats
    ordered: bool


def log_since(columns: Binned, persistence: int) -> Floats:
    """[columns, windows] of each window the logarithm of the evidence that the column changed there and stayed so.

    It has to stand without the `persistence - 1` windows that lie farthest off the reference, and needs as many
    windows as `persistence` at least; nor do so many such windows among the earlier ones tell what is usual. So a
    lamp that flickers once raises no alarm, neither then nor when it is well again.
    """
    count = columns.counts.shape[1]
    since = np.triu(np.ones((count, count)))  # [start, window]
    before = 1.0 - since
    if persistence == 1:
        return _evidence(columns, since, before)
    own = _evidence(columns, np.eye(count), np.zeros_like(since))
    rank = np.argsort(np.argsort(-own, axis=-1, kind="stable"), axis=-1)
    louder = (rank[:, :, None] < rank[:, None, :]).astype(np.float64)  # [column, i, j]: i is louder than j

    def without_loudest(weights: Floats) -> Floats:
        return weights * (weights @ louder >= persistence - 1)

    usual = without_loudest(before)
    found = np.minimum(_evidence(columns, since, usual), _evidence(columns, without_loudest(since), usual))
    found[:, max(0, count - persistence + 1) :] = -np.inf
    return found


def _evidence(columns: Binned, chosen: Floats, before: Floats) -> Floats:
    """[columns, starts] the logarithm of the e-value of the chosen windows [(columns,) starts, windows], where those
    before tell what is usual.

    The mean of likelihood ratios for a change of any kind (Dirichlet-multinomial) and, of ordered bins, for a shift
    (normal scores, for which the sums are as good as normal).
    """
    counts, null = chosen @ columns.counts, _expected(columns, chosen, before)
    base = _log_likelihood(counts, null)
    ratios = [_log_likelihood(counts, null / wider) - base for wider in _WIDER]
    if columns.ordered:
        ratios += _shifts(counts[..., :-1], null[..., :-1])
    return np.asarray(np.logaddexp.reduce(ratios, axis=0) - np.log(len(ratios)))


def _expected(columns: Binned, chosen: Floats, before: Floats) -> Floats:
    """[columns, starts, bins] what is known of the shares of the chosen windows, in rows: the reference's, and those
    of the windows before, as if these had had the mix of sites of the chosen ones.
    """
    rows = columns.counts.sum(axis=-1)
    weight = np.maximum(chosen * rows[:, None, :], 1e-12 * np.eye(rows.shape[1]))
    weight /= weight.sum(axis=-1, keepdims=True)
    expected = np.maximum(weight @ columns.expected, 1e-9)
    earlier = before * rows[:, None, :]
    usual = np.maximum(earlier @ columns.expected, 1e-9) / np.maximum(earlier.sum(axis=-1, keepdims=True), 1e-9)
    past = before @ columns.counts * np.where(usual > 1e-6, expected / usual, 1.0)
    known = (weight @ columns.worth[:, :, None]) * expected + past
    known *= np.minimum(1.0, columns.limit[:, None, None] / np.maximum(known.sum(axis=-1, keepdims=True), 1e-9))
    return np.asarray(known + _PRIOR)


def _log_likelihood(counts: Floats, alpha: Floats) -> Floats:
    """Dirichlet-multinomial, without the term that the hypotheses share."""
    from scipy.special import gammaln

    total, rows = alpha.sum(axis=-1), counts.sum(axis=-1)
    each = gammaln(alpha + counts) - gammaln(alpha)
    return np.asarray(gammaln(total) - gammaln(total + rows) + each.sum(axis=-1))


def _shifts(counts: Floats, null: Floats) -> list[Floats]:
    """The sum of the rows' normal scores is N(0, rows + rows²/worth), and wider where the column has shifted."""
    from scipy.special import ndtri

    worth = null.sum(axis=-1)
    share = null / worth[..., None]
    scores = ndtri(np.cumsum(share, axis=-1) - share / 2.0)
    scores -= (share * scores).sum(axis=-1, keepdims=True)
    spread = np.sqrt((share * scores**2).sum(axis=-1))
    rows = np.maximum(counts.sum(axis=-1), 1.0)
    moved = (counts * scores).sum(axis=-1) / np.maximum(spread, 1e-9)
    before = rows + rows**2 / worth
    after = [rows + rows**2 * wider / worth for wider in _WIDER]
    return [0.5 * (np.log(before / v) + moved**2 * (1.0 / before - 1.0 / v)) for v in after]
