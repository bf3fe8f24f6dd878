"""A column as counts: what of a window the alarm's evidence is made of, and what its row in WINDOWS keeps.

In: a column of a window and one of its reference, which have been through `drift.clean`. Out: how many rows lie in
each bin, and how many the reference leads one to expect. Numbers are cut at the reference's quantiles, classes are
themselves; the last bin holds what is missing, and of classes also what the reference has never seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Cuts = Sequence[float] | Sequence[str]
"""Of numbers the edges between the bins, of classes their names."""

_FEWEST_BINS, _ROWS_A_BIN = 4, 50


@dataclass(frozen=True)
class Tally:
    """counts: rows in each bin. expected: shares of the reference. worth: how many independent rows these come from;
    limit: how many of them may ever count. ordered: the bins but the last stand in order.
    """

    counts: tuple[int, ...]
    expected: tuple[float, ...]
    worth: float
    limit: float
    ordered: bool


def is_numeric(column: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column))


def cuts_of(reference: pd.Series, bins: int) -> list[float] | list[str]:
    """Edges between at most `bins` bins, of which each has as many rows of the reference as ties allow and not too few
    to be compared with; class names.
    """
    there = reference.dropna()
    if not is_numeric(reference):
        return sorted({str(value) for value in there})
    if there.empty:
        return []
    parts = np.linspace(0.0, 1.0, min(bins, max(_FEWEST_BINS, len(there) // _ROWS_A_BIN)) + 1)
    return [float(edge) for edge in np.unique(np.quantile(there.to_numpy(), parts[1:-1]))]


def count(column: pd.Series, cuts: Cuts) -> NDArray[np.int64]:
    """[bins] rows: one bin more than there are edges or names, and the last one."""
    there = column.dropna()
    if is_numeric(column):
        place = np.searchsorted(np.asarray(cuts, dtype=np.float64), there.to_numpy(dtype=np.float64), side="right")
        found = np.bincount(place, minlength=len(cuts) + 1)
        return np.append(found, len(column) - len(there)).astype(np.int64)
    known = there.astype(str).value_counts().reindex([str(name) for name in cuts], fill_value=0).to_numpy()
    return np.append(known, len(column) - known.sum()).astype(np.int64)


def tally(now: pd.Series, was: pd.Series, cuts: Cuts, worth: float, limit: float) -> Tally:
    """The counts of a window's column `now` beside the shares of its reference `was`."""
    expected = count(was, cuts) / max(len(was), 1)
    return Tally(
        counts=tuple(int(n) for n in count(now, cuts)),
        expected=tuple(round(float(share), 6) for share in expected),
        worth=round(worth, 1),
        limit=round(limit, 1),
        ordered=is_numeric(was),
    )
