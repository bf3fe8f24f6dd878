"""A look at sites whose rows nobody may see: they count their own new rows, and the counts are compared.

In: the champion, and the sites' answers to a job like any other. Out: a row in HISTOGRAM_WINDOWS, and its figures on
the dashboard. The bins are fixed by the reference of all sites and kept beside the thresholds. The row is the truth: a
look that dies before it is repeated, and a turn that was recorded is never asked again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sqlalchemy as sa

from models.errors import Missing
from monitoring import histograms
from monitoring.dashboard import Dashboard, Figure
from monitoring.database import HISTOGRAM_WINDOWS, connect, insert_new
from monitoring.drift import OVERALL, ScopeDrift
from monitoring.histograms import Bins, Histograms
from monitoring.panels import HISTOGRAMS
from pipelines import registry
from pipelines.federated.engines.engine import Engine
from pipelines.federated.files import write_atomically
from pipelines.federated.jobs import DescribeAnswer, DescribeJob, Failure
from pipelines.federated.watching import Watch
from pipelines.gather import embedded_engine
from pipelines.judging import scopes_told
from pipelines.loop import weights_of
from pipelines.reference import centroids_of
from pipelines.settings import Settings
from pipelines.summarize import ask_all


@dataclass(frozen=True)
class HistogramReport:
    """What one turn showed."""

    version: int
    turn: int
    scopes: tuple[ScopeDrift, ...]
    notes: tuple[str, ...] = ()  # sites that could not answer, and why

    @property
    def odd(self) -> bool:
        return any(scope.odd for scope in self.scopes)

    @property
    def sentence(self) -> str:
        worst = max(self.scopes, key=lambda scope: scope.worst)
        notes = "".join(f"; {note}" for note in self.notes)
        how = "odd" if self.odd else "as expected"
        figure = f"worst column at {worst.worst:.1f} x its threshold ({worst.scope})"
        return f"histograms {self.turn} of version {self.version} ({self.scopes[0].rows} rows): {how}, {figure}{notes}"


def look(settings: Settings, engine: Engine | None = None, now: float | None = None) -> HistogramReport | None:
    """Count the sites' new rows and judge them; None while there are too few, or no champion.

    A site that cannot answer is left out, and its rows are in a later turn.

    Raises:
        Missing: the registry does not answer, or the champion's data summary is lost.
        BadInput: a site cannot say what its reference is.
    """
    champion = registry.by_alias(settings, registry.CHAMPION)
    if champion is None:
        return None
    centroids = centroids_of(settings, champion.number)
    if centroids is None:
        raise Missing(f"version {champion.number} has no data summary, which the sites' histograms need")
    known: dict[str, tuple[str, ...]] = {}
    for split in ("train", "evaluation"):
        for site, snapshots in json.loads(champion.tags[f"fedloop.snapshots.{split}"]).items():
            known[site] = (*known.get(site, ()), *snapshots)
    weights, smallest = weights_of(settings, champion.number), settings.monitors.smallest_count
    asked = Watch(str(champion.number), 0, {}, (), weights, centroids, smallest)
    sites = engine or embedded_engine(settings)
    log = connect(settings.database_url)
    try:
        return _turn(settings, sites, log, champion.number, asked, known, time.time() if now is None else now)
    finally:
        log.dispose()


def _turn(
    settings: Settings,
    engine: Engine,
    log: sa.Engine,
    version: int,
    asked: Watch,
    known: Mapping[str, tuple[str, ...]],
    now: float,
) -> HistogramReport | None:
    bins, reference = _reference(settings, engine, asked, version)
    w = HISTOGRAM_WINDOWS.c
    of_version = sa.select(w.turn, w.evidence["answered"].label("answered")).where(w.model_version == version)
    with log.connect() as connection:
        recorded = {site: row.turn for row in connection.execute(of_version.order_by(w.turn)) for site in row.answered}
    turn = max(recorded.values(), default=0) + 1
    wanted = replace(asked, turn=turn, edges=dict(bins.edges))
    jobs = {
        site: DescribeJob((), "new", watch=replace(wanted, known=known.get(site, ()), recorded=recorded.get(site, 0)))
        for site in reference
    }
    answers, notes = {}, []
    for site, answer in engine.ask(jobs):
        if isinstance(answer, DescribeAnswer):
            answers[site] = answer
        elif isinstance(answer, Failure):
            notes.append(answer.reason)
    if sum(answer.rows for answer in answers.values()) < settings.monitors.histogram_rows:
        return None
    counted = {site: answer.histograms for site, answer in answers.items()}
    smallest, classes = settings.monitors.smallest_count, settings.task.classes
    scopes = histograms.compare(counted, reference, bins, settings.drift, smallest, classes, settings.seed)
    report = HistogramReport(version, turn, tuple(scopes), tuple(notes))
    row: dict[str, Any] = {"model_version": version, "turn": turn, "at": now, "rows": scopes[0].rows}
    row |= {
        "odd": int(report.odd),
        "evidence": {"scopes": scopes_told(scopes), "notes": notes, "answered": sorted(answers)},
    }
    with log.begin() as connection:
        number = connection.execute(insert_new(log, HISTOGRAM_WINDOWS).returning(w.window), row).scalar_one_or_none()
    if number is None:
        return None  # another monitor was quicker
    _show(settings, report, number, now)
    return report


def _show(settings: Settings, report: HistogramReport, number: int, now: float) -> None:
    overall, *sites = report.scopes
    figures = [Figure("histogram drift", column.column, column.ratio) for column in overall.columns]
    figures += [Figure("histogram site drift", site.scope, site.worst) for site in sites]
    figures += [Figure(name, "threshold", 1.0) for name in ("histogram drift", "histogram site drift")]
    figures.append(Figure("histogram rows", OVERALL, float(overall.rows)))
    metadata = {"version": str(report.version), "turn": str(report.turn)}
    Dashboard(settings.dashboard, settings.model_name).write(
        number, HISTOGRAMS, now, figures, metadata=metadata, text=report.sentence
    )


def _reference(settings: Settings, engine: Engine, asked: Watch, version: int) -> tuple[Bins, Mapping[str, Histograms]]:
    """The bins and every site's reference over them: asked for once, then read."""
    path = settings.folder / "histograms" / f"{version}-{asked.smallest}.json"
    classes = len(settings.task.classes)
    if not path.is_file():
        fine = _ask_reference(engine, replace(asked, edges=histograms.fine_bins(classes)))
        columns = next(iter(fine.values()))
        bins = histograms.choose_bins({c: np.sum([own[c] for own in fine.values()], axis=0) for c in columns}, classes)
        found = _ask_reference(engine, replace(asked, edges=dict(bins.edges)))
        made: dict[str, Any] = {
            "edges": dict(bins.edges),
            "places": {column: places.tolist() for column, places in bins.places.items()},
            "spread": dict(bins.spread),
            "sites": {site: {column: own.tolist() for column, own in told.items()} for site, told in found.items()},
        }
        write_atomically(path, json.dumps(made).encode())
    kept = json.loads(path.read_text())
    places = {column: np.array(values) for column, values in kept["places"].items()}
    bins = Bins({column: tuple(edges) for column, edges in kept["edges"].items()}, places, kept["spread"])
    return bins, {s: {c: np.array(own, dtype=np.int64) for c, own in told.items()} for s, told in kept["sites"].items()}


def _ask_reference(engine: Engine, watch: Watch) -> dict[str, Histograms]:
    answers = ask_all(engine, {site: DescribeJob((), "new", watch=watch) for site in engine.population}, DescribeAnswer)
    return {site: answer.histograms for site, answer in answers.items() if answer.rows}
