"""A handful of sites of unequal size in one process, and the product's round loop over them with given cohorts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.draws import Words, draw_seed, seeds_of
from models.population import Partition, partition
from pipelines.federated.cohort import Committed
from pipelines.federated.kernels.plain import plain
from pipelines.federated.layout import Layout
from pipelines.federated.local_work import local_updates
from pipelines.federated.plan import Context, Gathered, TrainingPlan, TrainingState
from pipelines.federated.rules import Seats
from pipelines.federated.steps import steps_of
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


@dataclass
class FewSites:
    """A round's reports in one process: what an engine is to the round loop. cohorts: site numbers, by round."""

    population: Partition
    cohorts: list[list[int]]
    model: nn.Module

    def __post_init__(self) -> None:
        self.layout = Layout.of_model(self.model)
        self.kernel = plain(self.model, self.layout)

    def seeds(self, plan_seed: int, number: int, sites: NDArray[np.int64]) -> Words:
        return seeds_of(draw_seed(plan_seed, number), sites)

    def collect(self, plan: TrainingPlan, state: TrainingState) -> tuple[Gathered, Context]:
        strategy, number = plan.strategy, state.round + 1
        rule, work = strategy.rule, plan.work(number)
        sites = np.array(self.cohorts[number - 1])
        seeds = self.seeds(plan.seed, number, sites)
        steps = steps_of(self.population.rows(sites), work, seeds)
        names = [*rule.memory, *(name for stage in strategy.stages for name in stage.memory)]
        kept = {name: state.context.get(name, torch.zeros(self.population.size, self.layout.size)) for name in names}
        seats = Seats(self.layout, seeds, {name: memory[sites] for name, memory in kept.items()})
        start = self.layout.flatten(state.parameters)
        sent, losses = local_updates(self.kernel, steps, start, state.shared, work, rule, strategy.stages, seats)
        weights = torch.from_numpy(np.ones(len(sites)) if rule.uniform else steps.examples)
        reduction = strategy.reducer.add(strategy.reducer.start(), sent, weights)
        examples, share = float(steps.examples.sum()), len(sites) / self.population.size
        loss = float(losses.double() @ torch.from_numpy(steps.examples))
        context = {
            name: memory.index_copy(0, torch.from_numpy(sites), seats.memory[name]) for name, memory in kept.items()
        }
        return Gathered(Committed(len(sites)), reduction, len(sites), len(sites), examples, loss, share), context


def run(strategy: Strategy, sites: FewSites, seed: int) -> TrainingState:
    """All of the rounds that have a cohort."""
    plan = TrainingPlan((), {}, len(sites.cohorts), seed, strategy)
    state = begin(plan, {name: tensor.detach() for name, tensor in sites.model.named_parameters()})
    for _ in sites.cohorts:
        state = run_round(plan, state, sites)
    return state


def weights_of(state: TrainingState) -> NDArray[np.float64]:
    """float64 [size]"""
    return np.asarray(Layout.of(state.parameters).flatten(state.parameters).double().numpy())
