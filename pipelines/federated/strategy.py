"""A strategy is data: local work, a rule, stages, a reducer and a server optimizer. A new algorithm is a new value."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.errors import BadInput
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

    def __post_init__(self) -> None:
        forms = [stage.name for stage in self.stages if stage.encodes]
        if len(forms) > 1:
            raise BadInput(
                f"the stages {' and '.join(forms)} each decide the form of an update, and only the last one's would be"
                " sent; leave one out, or give TopK or RandomMask a Quantise as its `values`"
            )

    def describe(self) -> dict[str, object]:
        """The strategy as plain values: names its state and goes into the registry."""
        return {
            "work": vars(self.work),
            "rule": self.rule.name,
            "stages": [stage.name for stage in self.stages],
            "reducer": self.reducer.name,
            "server": self.server.name,
        }
