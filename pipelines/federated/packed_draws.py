"""Five draws of 12 bits from one word, and tables that turn such a draw into a normal or an exponential number.

A table of 4,096 entries stays in the processor's nearest cache, so a draw costs about a nanosecond. What is lost: a
probability is kept to 1/4096, and a normal number ends at 3.7 standard deviations.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from models.draws import Words

BITS = 12
VALUES = 1 << BITS
_MIDDLES = (np.arange(VALUES) + 0.5) / VALUES

NORMAL: NDArray[np.float32] = np.array([NormalDist().inv_cdf(middle) for middle in _MIDDLES.tolist()], np.float32)
"""[4096]: the standard normal number of a draw."""
EXPONENTIAL: NDArray[np.float32] = -np.log1p(-_MIDDLES).astype(np.float32)
"""[4096]: the exponential number, with mean 1, of a draw."""


def field(words: Words, position: int) -> NDArray[np.int64]:
    """The draw at a position (0 to 4) of each word: 0 to 4095, to be looked up in a table."""
    return ((words >> np.uint64(BITS * position)) & np.uint64(VALUES - 1)).view(np.int64)


def happens(words: Words, position: int, probability: float) -> NDArray[np.bool_]:
    """True with the probability, by the draw at a position of each word."""
    return np.asarray(field(words, position) < round(probability * VALUES))


def classes(shares: Sequence[float]) -> NDArray[np.int64]:
    """[4096]: the class that a draw stands for, where class i has shares[i]."""
    return np.minimum(np.searchsorted(np.cumsum(shares), _MIDDLES), len(shares) - 1).astype(np.int64)
