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
    """A column of some windows in time order. The last bin is of what has no value.

    counts: [windows, bins] rows. expected: [windows, bins] shares that the reference leads one to expect, which
    change with the window's mix of sites. worth: [windows] how many independent rows stand behind them.
    limit: so many rows are never exceeded by reference and earlier windows together: what is too small to be worth
    an alarm then stays below one. ordered: the bins but the last stand in order, so that they can shift.
    """

    counts: Floats
    expected: Floats
    worth: Floats
    limit: float
    ordered: bool


def log_since(column: Binned, persistence: int) -> Floats:
    """[windows] of each window the logarithm of the evidence that the column changed there and has stayed so.

    It has to stand without the `persistence - 1` windows that speak loudest for themselves, and needs as many
    windows as `persistence` at least: a lamp that flickers once raises no alarm.
    """
    count = len(column.counts)
    since = np.triu(np.ones((count, count)))  # [start, window]
    found = _evidence(column, since)
    if persistence > 1:
        rank = np.argsort(np.argsort(-_evidence(column, np.eye(count)), kind="stable"))
        louder = (rank[:, None] < rank[None, :]).astype(np.float64)  # [i, j]: i is louder than j
        loudest = (since @ louder < persistence - 1) & (since > 0)
        found = np.minimum(found, _evidence(column, since * ~loudest))
        found[max(0, count - persistence + 1) :] = -np.inf
    return found


def _evidence(column: Binned, chosen: Floats) -> Floats:
    """[starts] the logarithm of the e-value of the chosen windows [starts, windows], each row from its start on.

    The mean of likelihood ratios for a change of any kind (Dirichlet-multinomial) and, of ordered bins, for a shift
    (normal scores, for which the sums are as good as normal).
    """
    from scipy.special import logsumexp

    counts, null = chosen @ column.counts, _expected(column, chosen)
    base = _log_likelihood(counts, null)
    ratios = [_log_likelihood(counts, null / wider) - base for wider in _WIDER]
    if column.ordered:
        ratios += _shifts(counts[:, :-1], null[:, :-1])
    return np.asarray(logsumexp(ratios, axis=0) - np.log(len(ratios)))


def _expected(column: Binned, chosen: Floats) -> Floats:
    """[starts, bins] what is known of the shares of the chosen windows, in rows: the reference's, and those of the
    windows before the start, as if these had had the mix of sites of the chosen ones.
    """
    rows = column.counts.sum(axis=1)
    weight = np.maximum(chosen * rows, 1e-12 * np.eye(*chosen.shape))
    weight /= weight.sum(axis=1, keepdims=True)
    expected = np.maximum(weight @ column.expected, 1e-9)
    before = np.tril(np.ones(chosen.shape), -1)
    usual = np.maximum((before * rows) @ column.expected, 1e-9) / np.maximum(before @ rows, 1e-9)[:, None]
    past = before @ column.counts * np.where(usual > 1e-6, expected / usual, 1.0)
    known = (weight @ column.worth)[:, None] * expected + past
    known *= np.minimum(1.0, column.limit / np.maximum(known.sum(axis=1), 1e-9))[:, None]
    return known + _PRIOR


def _log_likelihood(counts: Floats, alpha: Floats) -> Floats:
    """Dirichlet-multinomial, without the term that the hypotheses share."""
    from scipy.special import gammaln

    total, rows = alpha.sum(axis=1), counts.sum(axis=1)
    each = gammaln(alpha + counts) - gammaln(alpha)
    return np.asarray(gammaln(total) - gammaln(total + rows) + each.sum(axis=1))


def _shifts(counts: Floats, null: Floats) -> list[Floats]:
    """The sum of the rows' normal scores is N(0, rows + rows²/worth), and wider where the column has shifted."""
    from scipy.special import ndtri

    worth = null.sum(axis=1)
    share = null / worth[:, None]
    scores = ndtri(np.cumsum(share, axis=1) - share / 2.0)
    scores -= (share * scores).sum(axis=1, keepdims=True)
    spread = np.sqrt((share * scores**2).sum(axis=1))
    rows = np.maximum(counts.sum(axis=1), 1.0)
    moved = (counts * scores).sum(axis=1) / np.maximum(spread, 1e-9)
    before = rows + rows**2 / worth
    after = [rows + rows**2 * wider / worth for wider in _WIDER]
    return [0.5 * (np.log(before / v) + moved**2 * (1.0 / before - 1.0 / v)) for v in after]
