"""Four hospitals, 740 patients: FLamby's Fed-Heart-Disease by its own protocol, and by our defaults.

    python benchmarks/federated_heart.py [--quick]

FLamby publishes the accuracy over all hospitals' test patients, the mean of five seeds: .748 for FedAvg, .795 for a
model that pools the training patients. --quick takes one seed.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from models import heart
from models.fleet_task import FleetTask
from models.scores import scores_of
from pipelines.federated.engines.fleet import FleetEngine
from pipelines.federated.engines.turnout import Always
from pipelines.federated.layout import parameters_of
from pipelines.federated.plan import TrainingPlan
from pipelines.federated.strategies import STRATEGIES
from pipelines.federated.training import begin, run_round
from pipelines.federated.work import LocalWork

PUBLISHED = {"fedavg": 0.748, "pooled": 0.795}


def run(task: FleetTask, strategy: str, seed: int, **choices: float) -> dict[str, float]:
    """The task's quality after its recipe's rounds."""
    torch.manual_seed(seed)
    model = task.build_model()
    work = LocalWork(**{name: task.recipe[name] for name in LocalWork.__dataclass_fields__ if name in task.recipe})
    population = task.population(task.default_size, seed)
    plan = TrainingPlan((), {}, task.recipe["rounds"], seed, STRATEGIES[strategy](work, **choices))
    initial = parameters_of(model)
    state = begin(plan, initial)
    with FleetEngine(model, population, Always(4, 4), plan.strategy, "plain") as engine:
        while state.round < plan.rounds:
            state = run_round(plan, state, engine)
    parameters = state.parameters
    return task.evaluate(scores_of(model, parameters), population)


def measure(quick: bool) -> dict[str, Any]:
    seeds = range(1 if quick else 5)
    runs = {
        "fedavg": [run(heart.FLAMBY, "fedavg", seed) for seed in seeds],
        "fedprox": [run(heart.FLAMBY, "fedprox", seed, proximal=0.1) for seed in seeds],
        "scaffold": [run(heart.FLAMBY, "scaffold", seed) for seed in seeds],
        "default": [run(heart.TASK, "fedavg", seed) for seed in seeds],
    }
    return {
        name: {
            "accuracy": statistics.mean(own["accuracy"] for own in of),
            "lowest": min(own["accuracy"] for own in of),
            "highest": max(own["accuracy"] for own in of),
            "auc": statistics.mean(own["auc"] for own in of),
        }
        for name, of in runs.items()
    }


def table(found: dict[str, Any]) -> Table:
    table = Table(title="Heart disease at four hospitals: accuracy over all test patients", title_justify="left")
    for column in ("training", "accuracy", "over seeds", "AUC", "FLamby published"):
        table.add_column(column, justify="right")
    published = {"fedavg": ".748", "fedprox": ".748", "scaffold": ".748", "default": ".795 (pooled rows)"}
    for name, own in found.items():
        spread = f"{own['lowest']:.3f} to {own['highest']:.3f}"
        table.add_row(name, f"{own['accuracy']:.3f}", spread, f"{own['auc']:.3f}", published[name])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    Console().print(table(measure(parser.parse_args().quick)))


if __name__ == "__main__":
    main()
