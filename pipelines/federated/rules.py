"""What a site does in a round around its SGD, and what the server makes of it: one value an algorithm.

A rule's `local` reads as the paper's client procedure: it calls `train` as often as it needs, may keep vectors at the
site from round to round, and gives the vector that is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models.draws import Words
from pipelines.federated.layout import Layout
from pipelines.federated.work import LocalWork

Sent = tuple[torch.Tensor, torch.Tensor]
"""What the sites send [sites, >= size], the update first, and their losses [sites]."""


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
    ) -> Sent: ...


@dataclass(frozen=True)
class Turn:
    """A chunk's turn in a round, as a rule sees it.

    start: [size], the server's weights; shared: what the rule's server half sends along; steps: int64 [sites], the
    steps that `train` takes at each.
    """

    train: Train
    start: torch.Tensor
    shared: torch.Tensor
    seats: Seats
    steps: NDArray[np.int64]
    work: LocalWork


def _nothing(size: int) -> torch.Tensor:
    return torch.zeros(0)


def _as_it_is(mean: torch.Tensor, shared: torch.Tensor, share_of_population: float) -> Sent:
    return mean, shared


@dataclass(frozen=True)
class LocalRule:
    """local: the sites' procedure. shared(size): what the server sends beside the parameters, before the first round:
    [0] where it is nothing. absorb(mean, shared, share of the population that reported): the server's half, from the
    mean of what was sent to the update [size] and the next `shared`.

    memory: names of the vectors a site keeps; uniform: a site counts one, else by its examples.
    """

    name: str  # holds every value that changes the result: rules of one name are one
    local: Callable[[Turn], Sent] = field(compare=False)
    shared: Callable[[int], torch.Tensor] = _nothing
    absorb: Callable[[torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]] = _as_it_is
    memory: tuple[str, ...] = ()
    uniform: bool = False


def _plain(turn: Turn) -> Sent:
    return turn.train(turn.start)


PLAIN = LocalRule("plain", _plain)
"""Send the update (McMahan et al., 2017, algorithm 1)."""
