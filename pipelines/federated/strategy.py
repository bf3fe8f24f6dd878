"""A strategy is data: local work, a rule, stages, a reducer and a server optimizer. A new algorithm is a new value."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.federated.reducers import MEAN, Reducer
from pipelines.federated.rules import PLAIN, LocalRule
from pipelines.federated.server_optimizers import ServerOptimizer, Sgd
from pipelines.federated.stages import Stage
from pipelines.federated.work import LocalWork


@dataclass(frozen=True)
class Strategy:
    """By default federated averaging (McMahan et al., 2017): plain SGD, the mean by examples, added as it is."""

    work: LocalWork = field(default_factory=LocalWork)
    rule: LocalRule = PLAIN
    stages: tuple[Stage, ...] = ()
    reducer: Reducer = MEAN
    server: ServerOptimizer = field(default_factory=Sgd)

    def describe(self) -> dict[str, object]:
        """The strategy as plain values: names its state and goes into the registry."""
        return {
            "work": vars(self.work),
            "rule": self.rule.name,
            "stages": [stage.name for stage in self.stages],
            "reducer": self.reducer.name,
            "server": self.server.name,
        }
