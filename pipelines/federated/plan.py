"""What a training run is: the plan that determines it, the state it is in, and what a round brings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch

from pipelines.federated.cohort import Abandoned, Cohort, Committed
from pipelines.federated.jobs import Parameters
from pipelines.federated.server_optimizers import Moments
from pipelines.federated.strategy import Strategy
from pipelines.federated.work import LocalWork

Context = Mapping[str, torch.Tensor]
"""What an engine keeps between rounds (a fleet's clock, what its devices remember), as tensors by name."""


@dataclass(frozen=True)
class TrainingPlan:
    """What determines a run, and so its result."""

    labellings: tuple[str, ...]
    snapshots: Mapping[str, tuple[str, ...]]  # site → snapshot ids
    rounds: int
    seed: int
    strategy: Strategy = field(default_factory=Strategy)
    cohort: Cohort = field(default_factory=Cohort)
    fresh: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # new snapshots: see TrainJob.fresh
    final_rate: float = 1.0  # share of the learning rate that is left at the end, on a cosine (Loshchilov, 2017)
    start: str = ""  # names the initial weights: to its sites, a run from other weights is another run

    def work(self, round_number: int) -> LocalWork:
        """The local work of a round, 1 to `rounds`."""
        work = self.strategy.work
        if self.final_rate == 1.0:
            return work
        falling = 0.5 * (1.0 + math.cos(math.pi * (round_number - 1) / self.rounds))
        return replace(work, learning_rate=work.learning_rate * (self.final_rate + (1 - self.final_rate) * falling))


@dataclass(frozen=True)
class RoundRecord:
    """session: what a simulated fleet's round looked like, by the names of `gathering.py`; empty for asked sites."""

    round: int
    asked: int
    reports: int
    examples: float
    loss: float
    abandoned: str | None = None
    session: Mapping[str, Any] = field(default_factory=dict)


class History(Sequence[RoundRecord]):
    """The rounds so far, as a value. One that has grown from another shares its beginning: a round costs no copy."""

    def __init__(self, records: Iterable[RoundRecord] = ()) -> None:
        self._records = list(records)
        self._count = len(self._records)

    def grown(self, record: RoundRecord) -> History:
        """This one and a record more."""
        after = History()
        # What another has put behind this one's end stays that other's.
        after._records = self._records if len(self._records) == self._count else list(self)
        after._records.append(record)
        after._count = self._count + 1
        return after

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> RoundRecord: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[RoundRecord]: ...
    def __getitem__(self, place: int | slice) -> RoundRecord | Sequence[RoundRecord]:
        places = range(self._count)[place]
        return [self._records[i] for i in places] if isinstance(places, range) else self._records[places]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and list(self) == list(other)


@dataclass(frozen=True)
class TrainingState:
    """Everything a run is: serialise it, and the run can go on anywhere.

    shared: what the rule's server half sends beside the parameters (SCAFFOLD's control variate).
    """

    round: int
    parameters: Parameters
    moments: Moments
    log: History = field(default_factory=History)
    shared: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    context: Context = field(default_factory=dict)

    @property
    def abandoned(self) -> tuple[int, ...]:
        return tuple(record.round for record in self.log if record.abandoned is not None)


@dataclass(frozen=True)
class Gathered:
    """A round's reports, reduced: what an engine brings back from a cohort.

    reduction: the reducer's state; examples, loss: sums over the reports, the loss weighted by examples;
    share_of_population: reports by the number of sites there are; scale: of the mean (FedBuff's staleness).
    """

    outcome: Committed | Abandoned
    reduction: Any
    asked: int
    reports: int
    examples: float
    loss: float
    share_of_population: float
    failures: tuple[str, ...] = ()
    scale: float = 1.0
    session: Mapping[str, Any] = field(default_factory=dict)
