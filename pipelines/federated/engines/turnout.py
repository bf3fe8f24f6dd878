"""Who reports in a round of a simulated fleet: everybody who is drawn, or whoever the virtual clock lets come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.draws import draw_seed, sample
from models.population import Ids
from pipelines.federated.buffered import Buffering, gather_buffered
from pipelines.federated.clock import Clock
from pipelines.federated.cohort import Abandoned, Cohort, Committed
from pipelines.federated.fleet import Fleet
from pipelines.federated.gathering import Gathering, gather
from pipelines.federated.polling import Counts
from pipelines.federated.sessions import SessionCost


@dataclass(frozen=True)
class Called:
    """clients: those whose updates count, none where the round is abandoned.

    versions: the round whose weights each started from (FedBuff), None where all start from the newest; importance:
    float64 [clients], a factor on their weights; scale: of the mean; in_flight: rounds whose weights devices still
    work on.
    """

    outcome: Committed | Abandoned
    clients: Ids
    asked: int
    session: Mapping[str, Any] = field(default_factory=dict)
    versions: Ids | None = None
    importance: NDArray[np.float64] | None = None
    scale: float = 1.0
    in_flight: tuple[int, ...] = ()

    def by_version(self, newest: int) -> Iterator[tuple[int, Ids]]:
        """Positions of the clients that started from the same weights, oldest first."""
        if self.versions is None:
            yield newest, np.arange(len(self.clients))
            return
        for version in np.unique(self.versions):
            yield int(version), np.flatnonzero(self.versions == version)


class Turnout(Protocol):
    def call(self, seed: int, round_number: int, clock: Clock) -> tuple[Called, Clock]:
        """The round's reports and the clock after it; a function of its arguments alone."""
        ...


@dataclass(frozen=True)
class Always:
    """`goal` of `size` clients, drawn uniformly, all of whom report: the setting of most papers."""

    size: int
    goal: int

    def call(self, seed: int, round_number: int, clock: Clock) -> tuple[Called, Clock]:
        goal = min(self.goal, self.size) if self.goal else self.size
        clients = sample(draw_seed("cohort", seed, round_number), self.size, goal)
        return Called(Committed(goal), clients, goal), clock


@dataclass(frozen=True)
class OnClock:
    """Devices come when they can, on the fleet's virtual clock; buffering: the server does not wait for rounds but
    takes every `cohort.goal` reports as they come (FedBuff).
    """

    fleet: Fleet
    cohort: Cohort
    counts: Counts
    cost: SessionCost
    buffering: Buffering | None = None

    def call(self, seed: int, round_number: int, clock: Clock) -> tuple[Called, Clock]:
        if self.buffering is None:
            gathering, clock = gather(self.fleet, self.cohort, self.counts, self.cost, seed, round_number, clock)
            return self._called(gathering), clock
        gathering, clock = gather_buffered(
            self.fleet, self.cohort, self.buffering, self.counts, self.cost, seed, round_number, clock
        )
        weights = gathering.weights()
        called = self._called(gathering)
        # FedBuff divides by the number of reports, the reducer by the sum of their weights.
        scale = float(weights.mean()) if len(weights) else 1.0
        return (
            replace(
                called,
                versions=gathering.versions,
                importance=weights,
                scale=scale,
                in_flight=tuple(int(version) for version in np.unique(clock.flights.versions)),
            ),
            clock,
        )

    def _called(self, gathering: Gathering) -> Called:
        return Called(gathering.outcome, gathering.ids, gathering.selected, gathering.figures())
