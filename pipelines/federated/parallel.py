"""Parallel arrays: what is known of many devices or sites, an array for each thing known, all of one length."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Parallel:
    """A frozen dataclass of arrays [members]; members are taken, and added, in all of them at once."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def take(self, chosen: NDArray[np.integer[Any]] | NDArray[np.bool_]) -> Self:
        return type(self)(*(getattr(self, part.name)[chosen] for part in fields(self)))

    def and_then(self, *later: Self) -> Self:
        joined = ([getattr(each, part.name) for each in (self, *later)] for part in fields(self))
        return type(self)(*(np.concatenate(arrays) for arrays in joined))
