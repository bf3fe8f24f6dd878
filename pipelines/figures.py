"""The figures of a rehearsal: quality before, during and after the drift, the oracle's, and what labels cost."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import pandas as pd

from models.task import Task
from monitoring.traffic import TrafficLog
from pipelines import registry
from pipelines.challenger import label_history
from pipelines.federated.jobs import Parameters
from pipelines.federated.plan import TrainingPlan
from pipelines.federated.scoring import class_probabilities
from pipelines.federated.store import stack_images
from pipelines.gather import frozen, site_stores
from pipelines.loop import initial_weights, strategy_of
from pipelines.oracle import train_oracle
from pipelines.report import Summary, quality_of
from pipelines.settings import Settings
from pipelines.summarize import Snapshots


def figures(settings: Settings, summary: Summary, answers: pd.DataFrame) -> None:
    """Fill accuracy, auc, labels and registry.

    answers: the log with `truth` and `phase` (stable, dark, after, clean).
    """
    champion = registry.by_alias(settings, "champion")
    fallback = registry.by_alias(settings, "fallback")
    assert champion is not None
    first = int(answers["model_version"].iloc[0])
    after = answers[answers["phase"] == "after"]
    parts = {
        "before": answers[answers["phase"] == "stable"],
        "during": answers[(answers["phase"] == "dark") & (answers["model_version"] == first)],
        "after": after,
        "after_clean": answers[answers["phase"] == "clean"],
        "oracle_during_retrained": _oracle_answers(settings, champion, after),
    }
    quality = {name: quality_of(part) for name, part in parts.items()}
    for metric in ("accuracy", "auc"):
        values = {name: found[metric] for name, found in quality.items()}
        lost = values["oracle_during_retrained"] - values["during"]
        regained = (values["after"] - values["during"]) / lost if lost > 0 else float("nan")
        summary.put(metric, **values, regained=regained)
    history = label_history(settings, champion.number)
    spread = sum(entry["spread"] for entry in history)
    rows = sum(entry["rows"] for entry in history)
    summary.put(
        "labels",
        bought=int(sum(entry["bought"] for entry in history)),
        rows=int(rows),
        share=sum(entry["bought"] for entry in history) / rows,
        spread_accuracy=sum(e["accuracy"] * e["spread"] for e in history if e["spread"]) / max(spread, 1),
        spread_coverage=sum(entry["coverage"] * entry["rows"] for entry in history) / rows,
        held_for_evaluation=_evaluation_rows(settings, champion),
    )
    summary.put(
        "registry",
        champion=champion.number,
        fallback=fallback.number if fallback else None,
        versions=len(registry.versions(settings)),
    )


def _oracle_answers(settings: Settings, champion: registry.Version, asked: pd.DataFrame) -> pd.DataFrame:
    """What the oracle would have answered to the same pictures."""
    task = settings.task
    snapshots = frozen(json.loads(champion.tags["fedloop.snapshots.train"]))
    before = _trained_before(settings, champion)
    new = {site: tuple(one for one in own if one not in before.get(site, ())) for site, own in snapshots.items()}
    oracle = train_oracle(task, site_stores(settings), before, new, oracle_plan(settings), initial_weights(settings))
    log = TrafficLog.open(settings.database_url, settings.images)
    probabilities = predict(task, oracle, (log.image(name) for name in asked["image_hash"]))
    return asked.assign(prediction=probabilities.argmax(axis=1), probabilities=list(probabilities))


def oracle_plan(settings: Settings) -> TrainingPlan:
    """As many rounds as the first training has."""
    training = settings.training
    return TrainingPlan((), {}, training.rounds, settings.seed, strategy_of(settings), final_rate=training.final_rate)


def _trained_before(settings: Settings, champion: registry.Version) -> Snapshots:
    """The training snapshots of the version that the champion was trained from."""
    parent = champion.tags["fedloop.parent"]
    origin = registry.version(settings, int(parent)) if parent else champion
    return frozen(json.loads(origin.tags["fedloop.snapshots.train"]))


def predict(task: Task, parameters: Parameters, pngs: Iterable[bytes]) -> np.ndarray:
    return class_probabilities(task, parameters, stack_images(pngs, task.input))


def _evaluation_rows(settings: Settings, champion: registry.Version) -> int:
    stores = site_stores(settings)
    snapshots = json.loads(champion.tags["fedloop.snapshots.evaluation"])
    return sum(stores[site].manifest(one).rows for site, own in snapshots.items() for one in own)
