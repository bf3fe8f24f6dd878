"""What a monitor asks of a site whose rows it may not see: which columns, over which bins, of which rows.

It is the part of a DescribeJob that a monitor fills in; watched.py answers it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Watch:
    """What a monitor counts of a site's rows: columns by the inner edges of their bins, classes by half numbers.

    turn: 0 asks for the reference of the version; from 1 on for the rows that came since, each in one turn. recorded:
    the last turn for which this site's answer arrived. known: snapshots that the version has learned from or was judged
    on. smallest: a bin with fewer rows is not told.
    """

    version: str
    turn: int
    edges: dict[str, tuple[float, ...]]
    known: tuple[str, ...]
    parameters: dict[str, torch.Tensor]
    centroids: NDArray[np.float64]
    smallest: int = 5
    recorded: int = 0
