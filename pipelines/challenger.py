"""The challenger's way into the registry: judged on everybody's evaluation rows, entered with its lineage."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from models.artifact import read as read_weights
from monitoring.alarm import DRIFT
from pipelines import registry, steps
from pipelines.cases import ask_cases, keep_report
from pipelines.evaluate import Evaluation, Verdict, evaluate, judge_cases
from pipelines.federated.jobs import Parameters, ReferenceAnswer, ReferenceJob
from pipelines.gather import Material, embedded_engine
from pipelines.loop import Labelled, Trained, trained_weights, weights_of
from pipelines.reference import accepted, write_held_out
from pipelines.settings import Settings
from pipelines.summarize import ask_all, summarize
from pipelines.tracking import Run

LOG = logging.getLogger("fedloop")

SUMMARY_CLUSTERS = 30
"""Clusters of the data summary that monitors measure distances to."""


def judge_challenger(settings: Settings, material: Material, trained: Trained) -> Evaluation:
    """The challenger against the champion on the same evaluation rows of every site, and on every customer's case."""
    found = _judge(settings, material, trained)
    LOG.info("evaluate: %s", found.verdict)
    return found


def _judge(settings: Settings, material: Material, trained: Trained) -> Evaluation:
    champion = None if material.parent is None else weights_of(settings, material.parent)
    challenger = trained_weights(trained)
    found = evaluate(
        embedded_engine(settings),
        settings.task,
        material.evaluation,
        challenger,
        champion,
        settings.gate,
        settings.seed,
        material.fresh,
    )
    cases = ask_cases(settings, challenger, champion)
    return replace(found, verdict=judge_cases(found.verdict, cases), cases=cases)


def spare_labels(settings: Settings, material: Material, adapted: Trained | None) -> Evaluation | None:
    """What the gate says of the adapted model where it is enough, so that no label is bought; None where it is not.

    It is enough when it passes and, on the new rows, reaches what the champion was measured at when it was made but
    for `labels.spared_within`.
    """
    if adapted is None or material.parent is None:
        return None
    found = _judge(settings, material, adapted)
    if found.fresh is None:
        return None
    metric, reached = settings.task.metric, found.fresh.challenger
    was = float(registry.version(settings, material.parent).tags.get(f"challenger_{metric}", "nan"))
    enough = found.verdict.passed and reached >= was - settings.labels.spared_within
    word = "so no label is needed" if enough else "so labels are"
    LOG.info("adapt: %s is %.3f on the new rows without new labels and was %.3f before, %s", metric, reached, was, word)
    if enough:
        LOG.info("evaluate: %s", found.verdict)
    return found if enough else None


def enter_registry(
    settings: Settings, material: Material, labelled: Labelled | None, trained: Trained, found: Evaluation
) -> registry.Version:
    """Register the challenger with its lineage and every figure the gate saw, and write the sites' references."""
    task, parameters = settings.task, trained_weights(trained)
    summary = _summary_file(settings, material, trained)
    labellings = (*material.labellings, *([labelled.id] if labelled else []))
    tags = {
        "fedloop.task": task.name,
        "fedloop.snapshots.train": json.dumps(material.train if labelled else material.known),
        "fedloop.snapshots.evaluation": json.dumps(material.evaluation),
        "fedloop.labellings": json.dumps(labellings),
        "fedloop.labels_bought": str(labelled.bought if labelled else 0),
        "fedloop.labels": json.dumps(label_history(settings, material.parent, labelled)),
        "fedloop.rounds": str(trained.rounds),
        "fedloop.cohort": json.dumps(sorted(material.train)),
        "fedloop.seed": str(settings.seed),
        "fedloop.parent": str(material.parent or ""),
        "fedloop.line": json.dumps(_line(settings, material.parent)),
        **_gate_tags(found.verdict),
    }
    # Made up: a registry is outside every site, and no site's picture goes there.
    height, width, channels = task.input.shape
    ramp = np.linspace(0, 255, 2 * height * width * channels).astype(np.uint8)
    run = Run.start(settings, name=f"train-{trained.key}", key=trained.key)
    version = registry.register(
        settings,
        run_id=run.run_id,
        parameters=parameters,
        key=trained.key,
        tags=tags,
        figures=_report_figures(found),
        summary=summary,
        example=ramp.reshape(2, height, width, channels),
    )
    if version.reused:  # the same weights, judged anew and perhaps on more rows
        figures = {name: f"{value:.6g}" for name, value in _report_figures(found).items()}
        anew = {"fedloop.snapshots.evaluation": tags["fedloop.snapshots.evaluation"], **_gate_tags(found.verdict)}
        registry.tag(settings, version.number, figures | anew)
    run.end()
    if found.cases is not None:
        keep_report(settings, found.cases, version.number, material.parent)
    write_references(settings, material, parameters, summary, str(version.number))
    write_held_out(settings, version.number, found.challenger.confidence)
    LOG.info(
        "register: %s version %d%s", settings.model_name, version.number,
        " (reused: the same weights are registered)" if version.reused else "",
    )  # fmt: skip
    return version


def _line(settings: Settings, parent: int | None) -> list[int]:
    """The versions that a version came from, oldest first: it has learned their rows too."""
    if parent is None:
        return []
    return [*json.loads(registry.version(settings, parent).tags.get("fedloop.line", "[]")), parent]


def _gate_tags(verdict: Verdict) -> dict[str, str]:
    return {
        "fedloop.gate": str(verdict),
        "fedloop.gate_passed": str(verdict.passed).lower(),
        "fedloop.gate_metric_passed": str(verdict.metric_passed).lower(),
        "fedloop.cases_regressed": json.dumps(verdict.regressed),
    }


def label_history(settings: Settings, parent: int | None, labelled: Labelled | None = None) -> list[dict[str, float]]:
    """What labels cost and brought, one entry per labelling from the first version of the line to this one."""
    before = [] if parent is None else json.loads(registry.version(settings, parent).tags["fedloop.labels"])
    if labelled is None:
        return list(before)
    names = ("rows", "bought", "spread", "accuracy", "coverage")
    return [*before, {name: getattr(labelled, name) for name in names}]


def decide(settings: Settings, material: Material, version: registry.Version, verdict: Verdict, cause: str) -> str:
    """Release the challenger if the gate let it pass; returns what was done, in a sentence.

    Else, after an alarm, what the champion sees now becomes what monitors compare it with: nothing better could be made
    of it, so the same change is not to raise the same alarm for ever. It is raised when the world moves further, or
    when labels say that the champion errs. Without an alarm nothing moves: a slow change is to be noticed in the end.
    """
    if not verdict.passed:
        outcome = f"version {version.number} stays challenger: {verdict}"
        if cause == DRIFT and material.parent is not None and material.new:
            folder = registry.fetch(settings, material.parent)
            new = replace(material, train=material.new)
            name = accepted(material.parent)
            write_references(settings, new, read_weights(folder)[0], folder / "summary.npz", name)
    else:
        outcome = f"{steps.begin(settings, version.number, f'{cause}: {verdict}')} ({cause})"
    LOG.info("release: %s", outcome)
    return outcome


def write_references(settings: Settings, material: Material, parameters: Parameters, summary: Path, name: str) -> None:
    """What monitors compare this version's traffic with: the newest rows it knows, of every site."""
    centroids = np.load(summary)["centroids"]
    newest = material.train | material.new
    sites = sorted(site for site, snapshots in newest.items() if snapshots)
    own = material.fresh if material.parent is not None else material.evaluation
    jobs = {site: ReferenceJob((*newest[site], *own.get(site, ())), parameters, centroids, name) for site in sites}
    ask_all(embedded_engine(settings), jobs, ReferenceAnswer)


def _summary_file(settings: Settings, material: Material, trained: Trained) -> Path:
    """The version's data summary: clusters of the newest rows it knows, in the task's own embedding."""
    path = settings.folder / "summaries" / f"{trained.key}.npz"
    if path.is_file():
        return path
    newest = {site: own for site, own in (material.new or material.train).items() if own}
    engine = embedded_engine(settings)
    return summarize(engine, newest, SUMMARY_CLUSTERS, 5, settings.seed, directions=0).save(path)


def _report_figures(found: Evaluation) -> dict[str, float]:
    figures = dict(found.verdict.figures)
    for site, scores in found.challenger.sites.items():
        figures |= {
            f"{site}.accuracy": scores.accuracy,
            f"{site}.auc": scores.auc,
            f"{site}.rows": float(scores.rows),
        }
    for column, quartiles in found.challenger.slices.items():
        figures |= {f"slice.{column}.q{i + 1}.accuracy": accuracy for i, (_, accuracy) in enumerate(quartiles)}
    return {name: value for name, value in figures.items() if np.isfinite(value)}
