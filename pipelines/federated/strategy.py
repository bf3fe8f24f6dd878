"""A strategy is data: local work, stages, a reducer and a server optimizer. A new algorithm is a new value.

FedAvg: McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017.
Server optimizers: Reddi et al., "Adaptive federated optimization", ICLR 2021, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from pipelines.federated.jobs import LocalWork, Parameters, Stage
from pipelines.federated.reducers import MEAN, Reducer

Moments = dict[str, Parameters]
"""The server optimizer's state, by the name of the moment."""


@dataclass(frozen=True)
class ServerOptimizer:
    """start(parameters) → moments; step(parameters, update, moments) → (parameters, moments).

    The update is an ascent direction (end minus start of the local work), so `-update` is the pseudo-gradient.
    """

    name: str
    start: Callable[[Parameters], Moments]
    step: Callable[[Parameters, Parameters, Moments], tuple[Parameters, Moments]]


def sgd(learning_rate: float = 1.0) -> ServerOptimizer:
    """Add the update, scaled; with 1.0 this is FedAvg."""

    def step(parameters: Parameters, update: Parameters, moments: Moments) -> tuple[Parameters, Moments]:
        return {name: tensor + learning_rate * update[name] for name, tensor in parameters.items()}, moments

    return ServerOptimizer(f"sgd({learning_rate:g})", lambda _: {}, step)


def adam(
    learning_rate: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, adaptivity: float = 1e-3
) -> ServerOptimizer:
    """FedAdam; as in the paper without bias correction and from v = tau², with `adaptivity` its tau."""

    def start(parameters: Parameters) -> Moments:
        return {
            "first": {n: torch.zeros_like(t) for n, t in parameters.items()},
            "second": {n: torch.full_like(t, adaptivity**2) for n, t in parameters.items()},
        }

    def step(parameters: Parameters, update: Parameters, moments: Moments) -> tuple[Parameters, Moments]:
        first = {n: beta1 * m + (1 - beta1) * update[n] for n, m in moments["first"].items()}
        second = {n: beta2 * v + (1 - beta2) * update[n].square() for n, v in moments["second"].items()}
        moved = {n: t + learning_rate * first[n] / (second[n].sqrt() + adaptivity) for n, t in parameters.items()}
        return moved, {"first": first, "second": second}

    return ServerOptimizer(f"adam({learning_rate:g}, {beta1:g}, {beta2:g}, {adaptivity:g})", start, step)


@dataclass(frozen=True)
class Strategy:
    work: LocalWork = field(default_factory=LocalWork)
    stages: tuple[Stage, ...] = ()
    reducer: Reducer = MEAN
    server: ServerOptimizer = field(default_factory=sgd)

    def describe(self) -> dict[str, object]:
        """The strategy as plain values: names its state and goes into the registry."""
        return {
            "work": vars(self.work),
            "stages": [stage.name for stage in self.stages],
            "reducer": self.reducer.name,
            "server": self.server.name,
        }
