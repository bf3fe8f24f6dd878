"""An engine: where the sites of a run are. What stands above it does not know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from pipelines.federated.jobs import Answer, Failure, Job
from pipelines.federated.plan import Context, Gathered, TrainingPlan, TrainingState


class Rounds(Protocol):
    """Whoever can bring a training round's reports."""

    def collect(self, plan: TrainingPlan, state: TrainingState) -> tuple[Gathered, Context]:
        """The next round's reports at the state's weights, and what the engine is to find again in the round after."""
        ...


class Engine(Rounds, Protocol):
    """An engine whose sites have names and answer every kind of job."""

    @property
    def population(self) -> list[str]: ...

    def ask(self, jobs: Mapping[str, Job]) -> Iterator[tuple[str, Answer | Failure]]:
        """Each site's answer to its job, in the order of `jobs`."""
        ...
