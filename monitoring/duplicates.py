"""Pictures that came more than once: a camera that hangs, an upload that repeats itself, a client that retries.

In: the names of a window's pictures (hashes of their content). Out: which of them were there before in the window.
What is usual the windows before say, and before there are any the reference, by its quality columns, because it holds
no names. Ingest refuses twins, so there it is next to none.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.quality import QUALITY_COLUMNS
from monitoring.findings import Share


def duplicated(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """[n]: an earlier row of the same site and window has the same picture."""
    return np.asarray(rows.duplicated(["site", "image_hash"]), dtype=bool)


def usual_duplicates(reference: pd.DataFrame) -> Share:
    """Rows of a site's reference that are equal in every quality column to an earlier one."""
    return Share(int(reference.duplicated(list(QUALITY_COLUMNS)).sum()), len(reference))
