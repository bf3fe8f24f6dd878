"""What a site does in a round around its SGD, and what the server makes of it: one value an algorithm.

A rule reads as the paper's client procedure: it calls `train` as often as it needs, may keep vectors at the site from
round to round, and gives the vector that is sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models.draws import Words
from pipelines.federated.layout import Layout
from pipelines.federated.work import LocalWork


@dataclass
class Seats:
    """The sites of a chunk as rules and stages see them.

    seeds: uint64 [sites], of this site in this round; memory: by name, [sites, size], what each site keeps between
    rounds. A rule or stage replaces an entry; the site stores it once the round's work is done.
    """

    layout: Layout
    seeds: Words
    memory: dict[str, torch.Tensor] = field(default_factory=dict)


class Train(Protocol):
    """Local SGD of the chunk: deltas (end minus start) [sites, size] and losses [sites], valid until the next call."""

    def __call__(
        self,
        start: torch.Tensor,
        correction: torch.Tensor | None = None,
        anchor: torch.Tensor | None = None,
        proximal: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


class LocalRule(Protocol):
    """memory: names of the vectors a site keeps; uniform: a site counts one, else by its examples."""

    @property
    def name(self) -> str: ...
    @property
    def memory(self) -> tuple[str, ...]: ...
    @property
    def uniform(self) -> bool: ...

    def shared(self, size: int) -> torch.Tensor:
        """What the server sends beside the parameters, before the first round: [0] where it is nothing."""
        ...

    def local(
        self,
        train: Train,
        start: torch.Tensor,
        shared: torch.Tensor,
        seats: Seats,
        steps: NDArray[np.int64],
        work: LocalWork,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sites' procedure: what they send [sites, >= size], the update first, and their losses [sites]."""
        ...

    def absorb(
        self, mean: torch.Tensor, shared: torch.Tensor, share_of_population: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The server's half: the mean of what was sent → the update [size] and the next `shared`."""
        ...


@dataclass(frozen=True)
class Plain:
    """Send the update (McMahan et al., 2017, algorithm 1)."""

    name: str = "plain"
    memory: tuple[str, ...] = ()
    uniform: bool = False

    def shared(self, size: int) -> torch.Tensor:
        return torch.zeros(0)

    def local(
        self,
        train: Train,
        start: torch.Tensor,
        shared: torch.Tensor,
        seats: Seats,
        steps: NDArray[np.int64],
        work: LocalWork,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return train(start)

    def absorb(
        self, mean: torch.Tensor, shared: torch.Tensor, share_of_population: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return mean, shared


PLAIN = Plain()
