"""A handful of sites of unequal size as a fleet in this process, and the product's round loop with given cohorts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.draws import Words, draw_seed, seeds_of
from models.population import Partition, partition
from pipelines.federated.clock import Clock
from pipelines.federated.cohort import Committed
from pipelines.federated.engines.fleet import FleetContext, FleetEngine
from pipelines.federated.engines.turnout import Called
from pipelines.federated.layout import Layout
from pipelines.federated.plan import TrainingPlan, TrainingState
from pipelines.federated.strategy import Strategy
from pipelines.federated.training import begin, run_round


def make_model(features: int = 4, hidden: int = 5, classes: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, classes))


def make_population(counts: list[int], seed: int = 0, features: int = 4, classes: int = 3) -> Partition:
    """Sites that disagree: each has classes of its own mixture, seen from a place of its own."""
    rng = np.random.default_rng(seed)
    client = np.repeat(np.arange(len(counts)), counts)
    y = np.concatenate([rng.choice(classes, n, p=rng.dirichlet(np.ones(classes))) for n in counts])
    centre = 1.5 * rng.normal(size=(classes, features))
    place = 0.5 * rng.normal(size=(len(counts), features))
    x = centre[y] + place[client] + rng.normal(size=(len(y), features))
    return partition(x.astype(np.float32), y, client)


@dataclass(frozen=True)
class FewSites:
    """cohorts: site numbers, by round. It is a fleet's turnout: exactly those report."""

    population: Partition
    cohorts: list[list[int]]
    model: nn.Module

    def call(self, seed: int, round_number: int, clock: Clock) -> tuple[Called, Clock]:
        sites = np.array(self.cohorts[round_number - 1], dtype=np.int64)
        return Called(Committed(len(sites)), sites, len(sites)), clock

    def seeds(self, plan_seed: int, number: int, sites: NDArray[np.int64]) -> Words:
        """What the sites draw from in a round."""
        return seeds_of(draw_seed(plan_seed, number), sites)


def run(strategy: Strategy, sites: FewSites, seed: int) -> TrainingState:
    """All of the rounds that have a cohort."""
    plan = TrainingPlan((), {}, len(sites.cohorts), seed, strategy)
    state = begin(plan, {name: tensor.detach() for name, tensor in sites.model.named_parameters()})
    with FleetEngine(sites.model, sites.population, sites, strategy) as engine:
        for _ in sites.cohorts:
            state = run_round(plan, state, engine)
    return state


def kept(state: TrainingState, name: str, sites: int) -> torch.Tensor:
    """What the sites remember under that name: [sites, size], zeros where one never took part."""
    assert isinstance(state.context, FleetContext)
    return state.context.memory.of(np.arange(sites))[name]


def weights_of(state: TrainingState) -> NDArray[np.float64]:
    """float64 [size]"""
    return np.asarray(Layout.of(state.parameters).flatten(state.parameters).double().numpy())
