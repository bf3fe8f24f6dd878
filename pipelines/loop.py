"""The steps that make a challenger: buy labels, train. Each is idempotent by the content of its inputs.

Flows chain the steps; the command line calls them one by one. A step that was done before with the same inputs is not
done again, and says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.artifact import read as read_weights
from models.errors import BadInput, Missing
from pipelines import registry
from pipelines.federated.cohort import Cohort
from pipelines.federated.jobs import LocalWork, Parameters
from pipelines.federated.stages import clip_by_norm
from pipelines.federated.store import digest, write_atomically
from pipelines.federated.strategy import Strategy, adam, sgd
from pipelines.federated.training import TrainingPlan, TrainingState, latest, train
from pipelines.gather import Material, embedded_engine
from pipelines.label import Labelling, label
from pipelines.settings import Settings
from pipelines.tracking import Run

LOG = logging.getLogger("fedloop")


@dataclass(frozen=True)
class Labelled:
    """A labelling as a step's result: its id, the summary's file, and what it cost."""

    id: str
    summary: str
    rows: int
    bought: int
    newly_bought: int
    spread: int
    accuracy: float
    coverage: float
    agreeing: float
    reused: bool = False


@dataclass(frozen=True)
class Trained:
    """key: a hash of everything that determines the weights, which lie in `folder`."""

    key: str
    folder: str
    rounds: int
    abandoned: int
    loss: float
    reused: bool


# -- label ------------------------------------------------------------------------------------------------------


def buy_labels(settings: Settings, material: Material) -> Labelled | None:
    """Buy and spread labels for the new rows; None where there are none."""
    if not material.new_rows:
        LOG.info("label: no new rows, no labels bought")
        return None
    engine = embedded_engine(settings)
    key = digest("label", material.new, settings.labels.model_dump(), settings.seed)

    def compute() -> dict[str, Any]:
        made = label(engine, material.new, material.new_rows, settings.labels, settings.seed)
        summary = made.summary.save(settings.folder / "summaries" / f"{made.id}.npz")
        return {"id": made.id, "summary": str(summary)} | _figures(made)

    values, reused = once(settings.folder, "label", key, compute)
    done = Labelled(**(values | {"reused": reused}))
    LOG.info(
        "label: %d of %d rows bought (%.1f%%, %d of them anew), spread to %d more: %.1f%% right, %.0f%% covered%s",
        *(done.bought, done.rows, 100 * done.bought / done.rows, 0 if reused else done.newly_bought),
        *(done.spread, 100 * done.accuracy, 100 * done.coverage),
        " (reused: same rows, same budget)" if reused else "",
    )
    return done


def _figures(made: Labelling) -> dict[str, Any]:
    names = ("rows", "bought", "newly_bought", "spread", "accuracy", "coverage", "agreeing")
    return {name: getattr(made, name) for name in names}


# -- train ------------------------------------------------------------------------------------------------------


def strategy_of(settings: Settings) -> Strategy:
    t = settings.training
    return Strategy(
        work=LocalWork(t.epochs, t.batch_size, t.learning_rate, t.momentum, t.weight_decay),
        stages=(clip_by_norm(t.clip_norm),) if t.clip_norm else (),
        server=sgd(t.server_learning_rate) if t.server == "sgd" else adam(t.server_learning_rate),
    )


def fit(settings: Settings, material: Material, labelled: Labelled | None) -> Trained:
    """Federated rounds on everything that has a label, from the champion's weights where there is one."""
    labellings = (*material.labellings, *([labelled.id] if labelled else []))
    if not labellings:
        raise BadInput("there is nothing to learn from: no labelled rows; run the ingest and label steps first")
    initial, origin = _start(settings, material.parent)
    rounds = settings.training.rounds if material.parent is None else settings.training.retrain_rounds
    cohort = Cohort(goal=settings.training.cohort_goal, minimum=settings.training.minimum_reports)
    plan = TrainingPlan(labellings, material.train, rounds, settings.seed, strategy_of(settings), cohort)
    key = digest(
        settings.task.name, origin, labellings, material.train, rounds, settings.seed,
        plan.strategy.describe(), vars(cohort), settings.training.threads,
    )  # fmt: skip
    folder = settings.folder / "states" / key
    before = latest(folder)
    reused = before is not None and before.round >= rounds
    if reused:
        state = before
        LOG.info("train: %d rounds (reused: same rows, labels, settings and start; key %s)", rounds, key)
    else:
        if before is not None:
            LOG.info("train: an interrupted run is taken up after round %d of %d", before.round, rounds)
        state = _fit_tracked(settings, plan, initial, folder, key)
    assert state is not None
    losses = [record.loss for record in state.log if record.abandoned is None]
    abandoned = len(state.log) - len(losses)
    return Trained(key, str(folder), state.round, abandoned, losses[-1] if losses else float("nan"), reused)


def _fit_tracked(settings: Settings, plan: TrainingPlan, initial: Parameters, folder: Path, key: str) -> TrainingState:
    run = Run.start(settings, name=f"train-{key}", key=key)
    run.tags({f"fedloop.{name}": value for name, value in _flat(plan.strategy.describe()).items()})
    every = max(1, plan.rounds // 6)

    def on_round(state: TrainingState) -> None:
        last = state.log[-1]
        run.metrics({"loss": last.loss, "reports": last.reports, "examples": last.examples}, step=last.round)
        if last.round % every == 0 or last.round == plan.rounds:
            LOG.info("train: round %d of %d, %d sites, loss %.3f", last.round, plan.rounds, last.reports, last.loss)

    state = train(plan, initial, embedded_engine(settings), folder, on_round)
    run.end()
    return state


def _start(settings: Settings, parent: int | None) -> tuple[Parameters, str]:
    """The weights a run starts from and where they come from."""
    if parent is not None:
        return weights_of(settings, parent), f"version {registry.version(settings, parent).tags['fedloop.key']}"
    return initial_weights(settings), "initial"


def initial_weights(settings: Settings) -> Parameters:
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = settings.task.build_model()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def weights_of(settings: Settings, version: int) -> Parameters:
    return read_weights(registry.fetch(settings, version))[0]


def trained_weights(trained: Trained) -> Parameters:
    state = latest(Path(trained.folder))
    if state is None:
        raise Missing(f"the trained weights are gone from {trained.folder}; train again")
    return state.parameters


# -- once -------------------------------------------------------------------------------------------------------


def once(folder: Path, step: str, key: str, compute: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], bool]:
    """A step's result by the key of its inputs: from disk where it was done before, else computed and kept."""
    path = folder / "steps" / f"{step}-{key}.json"
    if path.is_file():
        return json.loads(path.read_text()), True
    values = compute()
    write_atomically(path, json.dumps(values, indent=2).encode())
    return values, False


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
