"""The steps that make a challenger: buy labels, train. Each is idempotent by the content of its inputs.

Flows chain the steps; the command line calls them one by one. A step that was done before with the same inputs is not
done again, and says so.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.artifact import read as read_weights
from models.draws import draw_seed
from models.errors import BadInput, Missing
from pipelines import registry
from pipelines.federated.checkpoints import latest
from pipelines.federated.cohort import Cohort
from pipelines.federated.files import digest, write_atomically
from pipelines.federated.jobs import Parameters
from pipelines.federated.layout import drawn_model, parameters_of
from pipelines.federated.plan import TrainingPlan, TrainingState
from pipelines.federated.server_optimizers import Adam, Sgd
from pipelines.federated.stages import ClipByNorm
from pipelines.federated.strategy import Strategy
from pipelines.federated.training import train
from pipelines.federated.work import LocalWork
from pipelines.gather import Material, embedded_engine
from pipelines.label import Labelling, label
from pipelines.next_budget import load
from pipelines.settings import Settings
from pipelines.tracking import Run

LOG = logging.getLogger("fedloop")


@dataclass(frozen=True)
class Labelled:
    """A labelling as a step's result: its id, and what it cost and brought."""

    id: str
    rows: int
    bought: int
    newly_bought: int
    spread: int
    accuracy: float
    coverage: float
    agreeing: float
    sites_off: int = 0
    suspects: int = 0
    pending: int = 0
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


def buy_labels(settings: Settings, material: Material, adapted: Trained | None = None) -> Labelled | None:
    """Buy and spread labels for the new rows; None where there are none. adapted: whose features help to cluster."""
    if not material.new_rows:
        LOG.info("label: no new rows, no labels bought")
        return None
    engine = embedded_engine(settings)
    encoder = trained_weights(adapted) if adapted else None
    # Where the champion errs says where a part of the budget goes; without a diagnosis the key is as it always was.
    wanted = None if material.parent is None else load(settings.next_budget(material.parent))
    asked = [wanted.id] if wanted else []
    budget = settings.labels.budget(material.new_rows, first=material.parent is None)
    what = (material.new, settings.labels.inputs(), budget, settings.seed, adapted.key if adapted else "", *asked)
    key = digest("label", *what)

    def compute() -> dict[str, Any]:
        made = label(
            engine,
            material.new,
            material.new_rows,
            settings.labels,
            settings.seed,
            encoder,
            material.known,
            wanted,
            budget,
        )
        return {"id": made.id} | _figures(made)

    # People who have not finished are asked again by the next call, so what is incomplete is not kept as done.
    whole = "pending" if settings.labels.annotator == "desk" else None
    values, reused = once(settings.folder, "label", key, compute, unless=whole)
    done = Labelled(**(values | {"reused": reused}))
    LOG.info(
        "label: %d of %d rows bought (%.1f%%, %d of them anew), spread to %d more: %.1f%% right, %.0f%% covered%s%s",
        *(done.bought, done.rows, 100 * done.bought / done.rows, 0 if reused else done.newly_bought),
        *(done.spread, 100 * done.accuracy, 100 * done.coverage),
        f", not at {done.sites_off} sites, whose check failed" if done.sites_off else "",
        " (reused: same rows, same budget)" if reused else "",
    )
    return done


def _figures(made: Labelling) -> dict[str, Any]:
    names = (
        *("rows", "bought", "newly_bought", "spread", "accuracy", "coverage", "agreeing"),
        *("sites_off", "suspects", "pending"),
    )
    return {name: getattr(made, name) for name in names}


# -- train ------------------------------------------------------------------------------------------------------


def strategy_of(settings: Settings) -> Strategy:
    t = settings.training
    return Strategy(
        work=LocalWork(t.epochs, t.batch_size, t.learning_rate, t.momentum, t.weight_decay),
        stages=(ClipByNorm(t.clip_norm),) if t.clip_norm else (),
        server=Sgd(t.server_learning_rate) if t.server == "sgd" else Adam(t.server_learning_rate),
    )


def adapt(settings: Settings, material: Material) -> Trained | None:
    """The champion on its old labels under the new rows' exposure, before any new label is bought.

    Costs no label, and its features make better clusters of the new rows. None where there is nothing to adapt to.
    """
    if material.parent is None or not material.new_rows:
        return None
    start, origin = weights_of(settings, material.parent), _origin(settings, material.parent)
    return _run(settings, "adapt", material, material.labellings, start, origin, settings.training.adapt_rounds)


def fit(settings: Settings, material: Material, labelled: Labelled | None, adapted: Trained | None = None) -> Trained:
    """Federated rounds on everything that has a label: from the adapted or the champion's weights, or from none."""
    labellings = (*material.labellings, *([labelled.id] if labelled else []))
    if not labellings:
        raise BadInput("there is nothing to learn from: no labelled rows; run the ingest and label steps first")
    if adapted is not None:
        start, origin = trained_weights(adapted), adapted.key
    elif material.parent is not None:
        start, origin = weights_of(settings, material.parent), _origin(settings, material.parent)
    else:
        start, origin = initial_weights(settings), "initial"
    rounds = settings.training.rounds if material.parent is None else settings.training.retrain_rounds
    return _run(settings, "train", material, labellings, start, origin, rounds)


def _run(
    settings: Settings,
    stage: str,
    material: Material,
    labellings: tuple[str, ...],
    start: Parameters,
    origin: str,
    rounds: int,
) -> Trained:
    """Rounds from `start` (whose content `origin` names), taken up where an earlier call was interrupted."""
    training = settings.training
    plan = TrainingPlan(
        labellings,
        material.train,
        rounds,
        draw_seed(settings.seed, stage),
        strategy_of(settings),
        Cohort(goal=training.cohort_goal, minimum=training.minimum_reports),
        material.recent,
        training.final_rate,
        origin,
    )
    key = digest(
        settings.task.name, stage, origin, labellings, material.train, plan.fresh, rounds, plan.seed,
        plan.strategy.describe(), vars(plan.cohort), training.final_rate, training.threads,
    )  # fmt: skip
    folder = settings.folder / "states" / key
    state = latest(folder)
    reused = state is not None and state.round >= rounds
    if state is not None and reused:
        LOG.info("%s: %d rounds (reused: same rows, labels, settings and start; key %s)", stage, rounds, key)
    else:
        if state is not None:
            LOG.info("%s: an interrupted run is taken up after round %d of %d", stage, state.round, rounds)
        state = _fit_tracked(settings, stage, plan, start, folder, key)
    losses = [record.loss for record in state.log if record.abandoned is None]
    if not losses:
        # Not to be reused: once its cause is gone, the same call is to train.
        shutil.rmtree(folder)
        raise BadInput(f"{stage}: all {rounds} rounds were abandoned, nothing was learned: {state.log[-1].abandoned}")
    abandoned = len(state.log) - len(losses)
    return Trained(key, str(folder), state.round, abandoned, losses[-1] if losses else float("nan"), reused)


def _fit_tracked(
    settings: Settings, stage: str, plan: TrainingPlan, initial: Parameters, folder: Path, key: str
) -> TrainingState:
    run = Run.start(settings, name=f"{stage}-{key}", key=key)
    run.tags({f"fedloop.{name}": value for name, value in _flat(plan.strategy.describe()).items()})
    every = max(1, plan.rounds // 6)

    def on_round(state: TrainingState) -> None:
        last = state.log[-1]
        run.metrics({"loss": last.loss, "reports": last.reports, "examples": last.examples}, step=last.round)
        if last.round % every == 0 or last.round == plan.rounds:
            LOG.info("%s: round %d of %d, %d sites, loss %.3f", stage, last.round, plan.rounds, last.reports, last.loss)

    state = train(plan, initial, embedded_engine(settings), folder, on_round)
    run.end()
    return state


def _origin(settings: Settings, version: int) -> str:
    return f"version {registry.version(settings, version).tags['fedloop.key']}"


def initial_weights(settings: Settings) -> Parameters:
    return parameters_of(drawn_model(settings.task, settings.seed))


def weights_of(settings: Settings, version: int) -> Parameters:
    return read_weights(registry.fetch(settings, version))[0]


def trained_weights(trained: Trained) -> Parameters:
    state = latest(Path(trained.folder))
    if state is None or state.round != trained.rounds:
        raise Missing(f"the trained weights are gone from {trained.folder}, or damaged; train again")
    return state.parameters


# -- once -------------------------------------------------------------------------------------------------------


def once(
    folder: Path, step: str, key: str, compute: Callable[[], dict[str, Any]], unless: str | None = None
) -> tuple[dict[str, Any], bool]:
    """A step's result by the key of its inputs: from disk where it was done before, else computed and kept.

    unless: a value of the result that, where it is not zero, says that the step is not done.
    """
    path = folder / "steps" / f"{step}-{key}.json"
    if path.is_file():
        return json.loads(path.read_text()), True
    values = compute()
    if unless and values[unless]:
        return values, False
    write_atomically(path, json.dumps(values, indent=2).encode())
    return values, False


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
