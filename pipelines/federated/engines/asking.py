"""A training round over sites that are asked by name: the same for sites in this process and in other organisations."""

from __future__ import annotations

import logging
import math

import torch

from pipelines.federated.engines.engine import Engine
from pipelines.federated.files import digest
from pipelines.federated.jobs import Failure, TrainAnswer, TrainJob
from pipelines.federated.plan import Context, Gathered, TrainingPlan, TrainingState

LOG = logging.getLogger("fedloop.training")


def collect_by_asking(engine: Engine, plan: TrainingPlan, state: TrainingState) -> tuple[Gathered, Context]:
    """Ask the round's cohort, reduce its answers as they come. The sites keep what is theirs; no context."""
    number, strategy = state.round + 1, plan.strategy
    population = [name for name in engine.population if plan.snapshots.get(name)]
    asked = plan.cohort.select(population, plan.seed, number)
    # Without the number of rounds: a run that is made longer goes on with what its sites kept.
    what = (plan.labellings, plan.snapshots, plan.fresh, plan.start)
    run = digest(plan.seed, *what, strategy.describe(), vars(plan.cohort), plan.final_rate)
    jobs = {
        name: TrainJob(
            number,
            plan.seed,
            plan.labellings,
            plan.snapshots[name],
            state.parameters,
            plan.work(number),
            strategy.rule,
            strategy.stages,
            plan.fresh.get(name, ()),
            run,
            state.abandoned,
            state.shared,
        )
        for name in asked
    }
    reduction = strategy.reducer.start()
    failures: list[str] = []
    reports, examples, loss = 0, 0.0, 0.0
    for name, answer in engine.ask(jobs):
        if isinstance(answer, Failure):
            failures.append(answer.reason)
        elif isinstance(answer, TrainAnswer) and not _is_finite(answer):
            failures.append(f"{name}: the update is not finite; a smaller learning rate or a clip_norm may help")
        elif isinstance(answer, TrainAnswer) and answer.examples > 0:
            weight = torch.tensor([answer.weight], dtype=torch.float64)
            reduction = strategy.reducer.add(reduction, answer.update[None], weight)
            reports, examples, loss = reports + 1, examples + answer.examples, loss + answer.examples * answer.loss
        else:
            failures.append(f"{name} has no labelled rows")
    for reason in failures:
        LOG.warning("round %d: %s", number, reason)
    outcome = plan.cohort.judge(len(asked), reports, failures)
    share = reports / max(len(population), 1)
    return Gathered(outcome, reduction, len(asked), reports, examples, loss, share, tuple(failures)), {}


def _is_finite(answer: TrainAnswer) -> bool:
    """One diverged site would turn everybody's weights into NaN."""
    return math.isfinite(answer.examples + answer.weight) and bool(answer.update.isfinite().all())
