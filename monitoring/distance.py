"""How far apart two columns are: the figures of Evidently's methods of these names, computed here with scipy so that a
look at every site costs milliseconds.

Numbers are compared by the Wasserstein distance in units of the reference's standard deviation, classes by the
Jensen-Shannon distance.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monitoring.bins import is_numeric

Floats = NDArray[np.float64]
SMALLEST_NORM = 0.001  # Evidently's own floor under the standard deviation


def method_of(reference: pd.Series) -> str:
    """Evidently's name for the distance of such a column."""
    return "wasserstein" if is_numeric(reference) else "jensenshannon"


def distance(reference: pd.Series, current: pd.Series) -> float:
    """The distance of two columns without missing values, equal to Evidently's of the same method."""
    if not is_numeric(reference):
        was, now = shares(reference, current)
        return float(jensen_shannon(now.to_numpy(), was.to_numpy()))
    from scipy.stats import wasserstein_distance

    norm = max(float(np.std(reference.to_numpy())), SMALLEST_NORM)
    return float(wasserstein_distance(reference.to_numpy(), current.to_numpy())) / norm


def jensen_shannon(now: Floats, was: Floats) -> Floats:
    """The distances [...] of shares [..., classes]. Scipy's is NaN where two differ by a rounding error."""
    from scipy.special import rel_entr

    middle = (now + was) / 2.0
    divergence = rel_entr(now, middle).sum(axis=-1) + rel_entr(was, middle).sum(axis=-1)
    return np.asarray(np.sqrt(np.maximum(divergence, 0.0) / 2.0))


def shares(*columns: pd.Series) -> list[pd.Series]:
    """The share of every class in each column, all in the same order."""
    labels = sorted({label for column in columns for label in column})
    return [column.value_counts(normalize=True).reindex(labels, fill_value=0.0) for column in columns]
