"""Many clients' rows without a process or a file for each: what a simulated fleet trains on.

A population is asked for the rows of some clients and gives them in one block. It may make them from a seed (10^9
devices, none of them stored), or point into a memory-mapped array (nothing copied).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Ragged:
    """Rows of several clients in one block: client i holds rows starts[i] to starts[i] + counts[i].

    x: float32 or uint8 [rows, ...]; y: int64 [rows]; starts, counts: int64 [clients]. The block may hold rows of
    nobody here: a whole memory-mapped data set is a block. uint8 images are scaled to [0, 1] as they are used.
    """

    x: torch.Tensor
    y: torch.Tensor
    starts: Ids
    counts: Ids

    def __len__(self) -> int:
        return len(self.starts)

    def client(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of one client: views, nothing is copied."""
        part = slice(int(self.starts[position]), int(self.starts[position] + self.counts[position]))
        return self.x[part], self.y[part]


class Population(Protocol):
    """Clients 0 to size-1. What a client holds is a function of its number alone."""

    @property
    def size(self) -> int: ...

    def counts(self, clients: Ids) -> Ids:
        """How many training rows each of the clients holds: cheap, for eligibility."""
        ...

    def rows(self, clients: Ids) -> Ragged:
        """The clients' training rows."""
        ...

    def held_out(self, clients: Ids) -> Ragged:
        """Rows of the same clients that no training sees: for evaluation by client and for personalisation."""
        ...


@dataclass(frozen=True)
class Partition:
    """A data set in arrays, dealt to clients: rows are sorted by client once, and every client is a slice.

    x, y: the sorted arrays (they may be memory-mapped); starts, sizes: int64 [clients]; test: rows held out of
    the same clients, where there are any.
    """

    x: torch.Tensor
    y: torch.Tensor
    starts: Ids
    sizes: Ids
    test: Partition | None = None

    @property
    def size(self) -> int:
        return len(self.starts)

    def counts(self, clients: Ids) -> Ids:
        return self.sizes[clients]

    def rows(self, clients: Ids) -> Ragged:
        return Ragged(self.x, self.y, self.starts[clients], self.sizes[clients])

    def held_out(self, clients: Ids) -> Ragged:
        if self.test is None:
            none = np.zeros(len(clients), dtype=np.int64)
            return Ragged(self.x[:0], self.y[:0], none, none)
        return self.test.rows(clients)


def partition(x: NDArray[np.generic], y: NDArray[np.integer], client: NDArray[np.integer]) -> Partition:
    """Deal rows to clients: client[i] in 0 … clients-1 says who holds row i.

    x: uint8 or float32 [rows, ...]. The rows are sorted by client, which copies them once.
    """
    order = np.argsort(client, kind="stable")
    sizes = np.bincount(client).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    labels = torch.from_numpy(np.ascontiguousarray(y[order]).astype(np.int64))
    return Partition(torch.from_numpy(np.ascontiguousarray(x[order])), labels, starts, sizes)
