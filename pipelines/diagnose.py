"""Why does a version err? Every site looks for the causes of its own errors; here the counts come together.

In go a registered version, from the traffic log wrong answers that have been labelled since, and the customers' cases
that it fails. Out come counts by cause, site, class and cluster, a report on the version's run, the causes of the
cases, and what the next label budget should go to.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.artifact import read as read_weights
from models.errors import FedloopError, Missing
from models.images import content_hash
from models.task import Task
from monitoring.cases import Case as CustomersCase
from monitoring.cases import Finding, keep_findings
from pipelines import registry
from pipelines.cases import CUSTOMERS, failing_cases, opened
from pipelines.federated.causes import CAUSES, NEXT_STEP, by_cause
from pipelines.federated.engines.engine import Engine
from pipelines.federated.error_page import (
    Page,
    ShownError,
    Table,
    class_table,
    load_errors,
    measured_rates,
    render,
)
from pipelines.federated.files import write_atomically
from pipelines.federated.jobs import (
    DISTANCE_RANGE,
    Case,
    Counts,
    DiagnoseAnswer,
    DiagnoseJob,
    Floats,
    Parameters,
)
from pipelines.gather import embedded_engine, frozen, site_stores
from pipelines.next_budget import next_budget, save
from pipelines.settings import DiagnosisSettings, Settings
from pipelines.summarize import DataSummary, Snapshots, ask_all, summarize
from pipelines.tracking import KEY, Run, artifact_url

LOG = logging.getLogger("fedloop")

Cases = Mapping[str, Sequence[Case]]
"""Site → wrong answers that somebody has labelled."""

CASES_MOST = 500
"""Labelled wrong answers of live traffic that a diagnosis looks at, the newest."""
LLOYD_ROUNDS = 5
DISTANCE_BINS = 256
REPORT_TAG = "fedloop.errors"


@dataclass(frozen=True)
class Learned:
    """What a version learned from and is judged on: snapshots by site, and labellings."""

    train: Snapshots
    evaluation: Snapshots
    labellings: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """The sites' answers about one version, over the clusters of `centroids` [k, d] in the task's embedding.

    cases: by the site that was asked about them, in the order of its answer.
    """

    version: int
    rate: float
    centroids: Floats
    answers: Mapping[str, DiagnoseAnswer]
    cases: Cases

    @property
    def rows(self) -> int:
        return sum(answer.rows for answer in self.answers.values())

    @property
    def classes(self) -> Counts:
        """[4, classes]: errors by cause and true class."""
        return np.asarray(np.sum([answer.classes for answer in self.answers.values()], axis=0))

    @property
    def clusters(self) -> Counts:
        """[4, k]: errors by cause and nearest cluster."""
        return np.asarray(np.sum([answer.clusters for answer in self.answers.values()], axis=0))

    @property
    def suspects(self) -> Counts:
        """[k]: training rows whose label is to be checked."""
        return np.asarray(np.sum([answer.suspects for answer in self.answers.values()], axis=0))

    @property
    def told(self) -> list[tuple[Case, str]]:
        """The cases that were looked at, each with its cause."""
        every = [pair for site, own in self.cases.items() for pair in zip(own, self.answers[site].cases, strict=True)]
        return [(case, CAUSES[cause]) for case, cause in every if cause >= 0]

    @property
    def causes(self) -> dict[str, int]:
        return by_cause(self.classes)

    @property
    def measured(self) -> tuple[float, float]:
        """The measured rates of the tests (unseen, unreadable): see `error_page.measured_rates`."""
        return measured_rates(np.sum([answer.calibration for answer in self.answers.values()], axis=0), self.rate)

    @property
    def sentence(self) -> str:
        errors = sum(self.causes.values())
        if not errors:
            return f"no errors in {self.rows} labelled rows"
        parts = ", ".join(f"{count} {cause}" for cause, count in self.causes.items() if count)
        most = max(self.causes, key=lambda cause: self.causes[cause])
        return f"{errors} errors in {self.rows} labelled rows: {parts}. {NEXT_STEP[most]}"


def diagnose(
    engine: Engine,
    learned: Learned,
    parameters: Parameters,
    version: int,
    settings: DiagnosisSettings,
    seed: int,
    cases: Cases | None = None,
) -> Diagnosis:
    """Ask every site that learned, with what the others learned at hand; sites without training rows are left out.

    Raises:
        BadInput: a site cannot answer, or there is nothing that was learned from.
    """
    jobs = jobs_of(engine, learned, parameters, version, settings, seed, cases or {})
    centroids = next(iter(jobs.values())).centroids
    sent = {site: job.cases for site, job in jobs.items()}
    return Diagnosis(version, settings.rate, centroids, ask_all(engine, jobs, DiagnoseAnswer), sent)


def jobs_of(
    engine: Engine,
    learned: Learned,
    parameters: Parameters,
    version: int,
    settings: DiagnosisSettings,
    seed: int,
    cases: Cases,
) -> dict[str, DiagnoseJob]:
    """The sites' jobs with what they need of each other: clusters of all training rows, and counts within them."""
    sites = sorted(site for site, own in learned.train.items() if own)
    train = {site: learned.train[site] for site in sites}
    # In the task's own embedding, whose distances a row can be asked for.
    summary = summarize(engine, train, settings.clusters, LLOYD_ROUNDS, seed, directions=0, bins=DISTANCE_BINS)
    jobs = {
        site: DiagnoseJob(
            version=str(version),
            labellings=learned.labellings,
            snapshots=learned.train[site],
            evaluation=learned.evaluation.get(site, ()),
            parameters=parameters,
            centroids=summary.centroids.astype(np.float64),
            radii=_radii_elsewhere(summary, site, settings.rate),
            rate=settings.rate,
            explained=settings.explained,
        )
        for site in sites
    }
    counts = ask_all(engine, jobs, DiagnoseAnswer)
    labels, truths = (
        np.sum([getattr(each, name) for each in counts.values()], axis=0) for name in ("labels", "truths")
    )
    # Whoever learned most is asked about what comes from nowhere, or from where nothing was learned.
    most = max(sites, key=lambda site: int(counts[site].labels.sum()))
    sent: dict[str, list[Case]] = {site: [] for site in sites}
    for site, own in sorted(cases.items()):
        sent[site if site in sent else most].extend(own)
    return {site: replace(job, labels=labels, truths=truths, cases=tuple(sent[site])) for site, job in jobs.items()}


def _radii_elsewhere(summary: DataSummary, site: str, rate: float) -> Floats:
    """[k]: within which all but `rate` of the other sites' rows of a cluster lie; 0 where they have none.

    Widened as if each of those rows had no part in its centroid, n / (n - 1), because the asked row has none either:
    in many dimensions the difference is larger than the spread of the distances.
    """
    others = np.sum([own for name, own in summary.distances.items() if name != site], axis=0)
    if not np.any(others):
        return np.zeros(len(summary.centroids))
    within = np.cumsum(others, axis=1)
    rows = within[:, -1]
    # The upper edge of the bin.
    radii = (np.argmax(within >= (1.0 - rate) * rows[:, None], axis=1) + 1) * (DISTANCE_RANGE / others.shape[1])
    every = np.sum(list(summary.counts.values()), axis=0)
    return np.where(rows > 0, radii * every / np.maximum(every - 1, 1), 0.0)


# -- a registered version ---------------------------------------------------------------------------------------


def diagnose_version(settings: Settings, number: int = 0) -> tuple[Diagnosis, Path]:
    """Diagnose a registered version (0: the champion, else the challenger); returns the report's file as well.

    The report lies with the version's run in MLflow as `errors/errors-<version>.html`; its sentence is the tag
    `fedloop.errors`.

    Raises:
        Missing: there is no such version, or the registry does not answer.
    """
    version = registry.version(settings, number) if number else _newest(settings)
    tags = version.tags
    learned = Learned(
        frozen(json.loads(tags["fedloop.snapshots.train"])),
        frozen(json.loads(tags["fedloop.snapshots.evaluation"])),
        tuple(json.loads(tags["fedloop.labellings"])),
    )
    parameters = read_weights(registry.fetch(settings, version.number))[0]
    customers = failing_cases(settings, parameters)
    cases = labelled_traffic(settings, version.number)
    for case, wrong in customers:
        cases.setdefault(case.site or "", []).append(wrong)
    found = diagnose(
        embedded_engine(settings), learned, parameters, version.number, settings.diagnosis, settings.seed, cases
    )
    path = write_report(settings, found)
    run = Run.start(settings, name=f"train-{tags[KEY]}", key=tags[KEY])
    run.artifact(path, "errors")
    run.end()
    registry.tag(settings, version.number, {REPORT_TAG: found.sentence})
    keep_case_causes(settings, found, [case for case, _ in customers])
    _keep(settings, found, artifact_url(settings, run.run_id, f"errors/{path.name}"))
    LOG.info("diagnose: %s", found.sentence)
    return found, path


def tell_causes(settings: Settings, number: int) -> str:
    """`diagnose_version` as a step of the loop: what keeps it from its figures is said, and ends no retraining."""
    try:
        return diagnose_version(settings, number)[0].sentence
    except FedloopError as error:
        LOG.warning("diagnose: no causes were found: %s", error)
        return f"not diagnosed: {error}"


def _newest(settings: Settings) -> registry.Version:
    for alias in (registry.CHAMPION, registry.CHALLENGER):
        if (found := registry.by_alias(settings, alias)) is not None:
            return found
    raise Missing(f"{settings.model_name} has no version to diagnose; `fedloop evaluate` makes one")


def labelled_traffic(settings: Settings, version: int) -> dict[str, list[Case]]:
    """The newest wrong answers of a version whose labels have come, by site."""
    with opened(settings) as log:
        last = log.last_seq()
        rows = log.between(max(1, last - settings.retrain.maximum_new_rows + 1), last + 1)
        rows = rows[rows["label"].notna() & (rows["model_version"] == version)]
        wrong = rows[rows["prediction"] != rows["label"].astype("int64")].tail(CASES_MOST)
        cases: dict[str, list[Case]] = {}
        for row in wrong.to_dict("records"):
            case = Case(
                log.image(row["image_hash"]), int(row["label"]), int(row["prediction"]), float(row["confidence"])
            )
            cases.setdefault(str(row["site"]), []).append(case)
        return cases


def keep_case_causes(settings: Settings, found: Diagnosis, failing: Sequence[CustomersCase]) -> None:
    """Append to the findings why the version failed customers' cases, which are named by their pictures' content."""
    causes = {content_hash(case.png): cause for case, cause in found.told if case.source == CUSTOMERS}
    with opened(settings) as log:
        keep_findings(log.engine, [
            Finding(case.case_id, case.version, found.version, False, causes[case.case_id])
            for case in failing
            if case.case_id in causes
        ])  # fmt: skip


def write_report(settings: Settings, found: Diagnosis) -> Path:
    """The federation's page: counts; errors with their pictures only where all sites are one organisation's."""
    folder = settings.folder / "reports"
    errors: tuple[ShownError, ...] = ()
    if settings.stage == "rehearsal" or settings.diagnosis.pictures:
        for site in found.answers:
            errors += load_errors(site_stores(settings)[site].report(str(found.version), "json").read_bytes())
    path = folder / f"errors-{found.version}.html"
    write_atomically(path, render(page(settings.task, settings.model_name, found, errors)).encode())
    return path


def page(task: Task, model_name: str, found: Diagnosis, errors: tuple[ShownError, ...] = ()) -> Page:
    """What the federation's report says; `errors`: those that may be shown one by one."""
    total = sum(found.causes.values())
    unseen, unreadable = found.measured
    notes = [
        f"Of rows like those learned {found.rate:.0%} at most are called unseen, and as many unreadable; of the rows "
        f"that the model was right on, the tests would have called {unseen:.0%} and {unreadable:.0%} so.",
        f"{int(found.suspects.sum())} labels of training rows are to be checked; which ones is known at their sites.",
    ]
    if len(errors) < total:
        shown = "The pictures stay at the sites" if not errors else f"{len(errors)} of {total} errors are shown here"
        notes.append(f"{shown}; every site has its own page (reports/errors-{found.version}.html).")
    by_site = {site: answer.classes.sum(axis=1).tolist() for site, answer in found.answers.items()}
    return Page(
        title=f"{model_name} version {found.version}: where it errs, and why",
        rows=found.rows,
        causes=found.causes,
        tables=(Table("by site", by_site), class_table(found.classes, task.classes)),
        notes=tuple(notes),
        errors=errors,
    )


def errors_told(settings: Settings, version: int) -> str:
    """What a version's diagnosis said, and where its report is; empty where there was none."""
    path = settings.folder / "reports" / f"errors-{version}.json"
    if not path.is_file():
        return ""
    said = json.loads(path.read_text())
    return f"Version {version}: {said['sentence']} The report: {said['url']}"


def _keep(settings: Settings, found: Diagnosis, url: str) -> None:
    """For whoever asks without the registry: what was said, where the report is, and what the next labels are for."""
    folder = settings.folder / "reports"
    said = {"sentence": found.sentence, "url": url}
    write_atomically(folder / f"errors-{found.version}.json", json.dumps(said, indent=2).encode())
    save(settings.next_budget(found.version), next_budget(found.centroids, found.clusters))
