"""Values as counts by bin, and counts that may be told: no bin with so few rows that it speaks of somebody.

In: values and the inner edges of bins. Out: counts, which add up over sites.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def count(values: NDArray[np.float64], edges: Sequence[float]) -> Counts:
    """[len(edges) + 1] rows by bin; a value on an edge is above it, and one that is no number is left out."""
    known = values[np.isfinite(values)]
    return np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1).astype(np.int64)


def hide_rare(counts: Counts, smallest: int, ordered: bool) -> Counts:
    """Counts [..., bins] in which no bin holds between 1 and `smallest` - 1 rows.

    ordered: neighbours are alike, so a bin with too few goes to the next one, what is left at the end to the last that
    has enough, and the totals stay unless they are too small themselves. Of bins that are not, the rare are left out.
    """
    if not ordered:
        return np.where(counts < smallest, 0, counts)
    out = np.zeros_like(counts)
    carried = np.zeros(counts.shape[:-1], dtype=counts.dtype)
    last = np.zeros(counts.shape[:-1], dtype=np.int64)
    for place in range(counts.shape[-1]):
        carried = carried + counts[..., place]
        enough = carried >= smallest
        out[..., place] = np.where(enough, carried, 0)
        last = np.where(enough & (carried > 0), place, last)
        carried = np.where(enough, 0, carried)
    rest = np.where(out.sum(axis=-1) > 0, carried, 0)
    np.put_along_axis(out, last[..., None], np.take_along_axis(out, last[..., None], -1) + rest[..., None], -1)
    return out
