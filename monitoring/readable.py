"""Which rows of a window are no usable input: pictures that cannot be read, values beyond the accepted range.

In: a window's rows of known sites and the sites' reference rows. Out: a share for every scope. The accepted range of a
site is that of its own reference, column by column, widened by a margin: cameras differ.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.quality import QUALITY_COLUMNS
from monitoring.findings import Share

Mask = NDArray[np.bool_]


def unreadable(rows: pd.DataFrame, readable: Mask) -> Mask:
    """[n]: the picture is gone or broken, or a quality column is no number. readable [n]: it could be decoded."""
    numbers = np.isfinite(rows[list(QUALITY_COLUMNS)].to_numpy(dtype=np.float64)).all(axis=1)
    return np.asarray(~readable | ~numbers)


def out_of_range(rows: pd.DataFrame, reference: Mapping[str, pd.DataFrame], margin: float) -> Mask:
    """[n]: a quality column lies beyond the range of the site's reference by more than `margin` of that range.

    A value that is no number is not counted here: it is unreadable.
    """
    found = np.zeros(len(rows), dtype=bool)
    for site, index in rows.groupby("site").indices.items():
        known = reference[str(site)][list(QUALITY_COLUMNS)].to_numpy(dtype=np.float64)
        low, high = np.nanmin(known, axis=0), np.nanmax(known, axis=0)
        slack = margin * (high - low) + 1e-9
        own = rows[list(QUALITY_COLUMNS)].to_numpy(dtype=np.float64)[index]
        found[index] = ((own < low - slack) | (own > high + slack)).any(axis=1)
    return found


def usual_out_of_range(reference_rows: int) -> Share:
    """What to expect of rows like the reference's: a fresh value passes the extremes of n others with probability
    2 / (n + 1). An upper bound: the columns go together, and the range was widened."""
    return Share(min(2 * len(QUALITY_COLUMNS), reference_rows), reference_rows)
