"""A judged window on the dashboard: its pages, its figures, and the panels that say how things stand.

In: what judging.py found. Out: snapshots in the Evidently workspace, named by the window's first seq, so that a window
that is shown twice is there once; and the panels of the project, whose texts are as of now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd
import sqlalchemy as sa

from monitoring import drift, performance
from monitoring.dashboard import Figure, figures_of
from monitoring.database import WINDOWS
from monitoring.drift import OVERALL
from monitoring.label_delay import label_delay
from monitoring.morning import Morning, how_things_stand, moment
from monitoring.panels import DATA, MOST_SITES, PERFORMANCE, Standing
from pipelines.diagnose import errors_told
from pipelines.judging import LABELS_MAY_TAKE, Judged, Watcher
from pipelines.settings import Settings

SITE_LABELS = 10  # of a window, below which a site's accuracy is a coin's toss and no point on a line
MORE = "What was done, with links to the model and the runs: Reports, the newest, 'how things stand'."


def show(watcher: Watcher, judged: Judged, rows: pd.DataFrame) -> None:
    """The window overall, its worst odd sites, and how often it is right as far as is known."""
    settings, from_seq = watcher.settings, int(rows["seq"].iloc[0])
    at, board = float(rows["at"].max()), watcher.dashboard
    metadata = {"from_seq": str(from_seq), "to_seq": str(int(rows["seq"].iloc[-1]) + 1), "version": str(judged.version)}
    overall = [scope for scope in judged.scopes if scope.scope == OVERALL]
    sites_odd = [scope for scope in judged.scopes if scope.scope != OVERALL and scope.odd]
    told = sorted(sites_odd, key=lambda scope: -scope.worst)[: settings.drift.site_reports]
    for scope in overall + told:
        here = judged.current if scope.scope == OVERALL else judged.current[(judged.site == scope.scope).to_numpy()]
        there = judged.reference
        if scope.scope != OVERALL:
            there = watcher.reference(judged.version).sites[scope.scope]
        shares = {str(name): 0.0 for name in settings.task.classes}
        shares |= {str(name): float(share) for name, share in here["prediction"].value_counts(normalize=True).items()}
        figures = figures_of(scope, shares)
        if scope.scope == OVERALL:
            figures += [Figure("site drift", each.scope, each.worst) for each in judged.scopes[1:]]
            figures.append(Figure("site drift", "threshold", 1.0))
        made = drift.report(scope, here, there, at=at)
        board.write(from_seq, scope.scope, at, figures, report=made, full=scope.odd, metadata=metadata)
    _show_data(watcher, judged, at, from_seq, metadata)
    _show_performance(watcher, rows, metadata, asdict(judged.estimate))


def _show_data(watcher: Watcher, judged: Judged, at: float, from_seq: int, metadata: Mapping[str, str]) -> None:
    """Quality, volume and the service's health: figures alone, which cost next to nothing."""
    figures = [Figure(finding.monitor, finding.scope, finding.value) for finding in judged.findings]
    figures += [
        Figure("usual volume", finding.scope, finding.usual)
        for finding in judged.findings
        if finding.monitor == "volume" and finding.usual is not None
    ]
    figures += [Figure("service", name, value) for name, value in judged.health.figures().items() if value is not None]
    watcher.dashboard.write(from_seq, DATA, at, figures, metadata=metadata)


def _show_performance(
    watcher: Watcher, rows: pd.DataFrame, metadata: Mapping[str, str], estimated: Mapping[str, Any] | None
) -> None:
    """Accuracy by the labels that have come so far, and what was to be expected when the window was judged."""
    from_seq, to_seq = int(rows["seq"].iloc[0]), int(rows["seq"].iloc[-1]) + 1
    figures = []
    if estimated:
        kind = "estimated accuracy" if not estimated["doubts"] else "doubtful estimate"
        figures = [Figure(kind, name, float(estimated[name])) for name in ("value", "low", "high")]
    for found in performance.accuracies(rows):
        if found.scope != OVERALL and found.labelled < SITE_LABELS:
            continue
        figures.append(Figure("accuracy", found.scope, found.value))
        figures.append(Figure("accuracy low", found.scope, found.low))
        figures.append(Figure("accuracy high", found.scope, found.high))
    delay = label_delay(watcher.log.engine, from_seq, to_seq)
    figures.append(Figure("labelled share", OVERALL, delay.share))
    if delay.labelled:
        figures.append(Figure("label delay", "median", delay.median_hours))
        figures.append(Figure("label delay", "90%", delay.slow_hours))
    labels = {"labels": str(delay.labelled)}
    watcher.dashboard.write(from_seq, PERFORMANCE, float(rows["at"].max()), figures, metadata=dict(metadata) | labels)


def late_labels(watcher: Watcher) -> None:
    """Draw the accuracy of the last windows anew where labels have come since."""
    w = WINDOWS.c
    last = sa.select(w.from_seq, w.to_seq).order_by(w.window.desc()).limit(LABELS_MAY_TAKE)
    with watcher.log.engine.connect() as connection:
        found = connection.execute(last).all()[::-1]
    counts = watcher.log.labelled([(window.from_seq, window.to_seq) for window in found])
    for window, labels in zip(found, counts, strict=True):
        shown = watcher.dashboard.metadata(window.from_seq, PERFORMANCE)
        if not labels or shown.get("labels") == str(labels):
            continue
        told = sa.select(w.model_version, w.evidence["estimate"].label("estimate")).where(w.from_seq == window.from_seq)
        with watcher.log.engine.connect() as connection:
            judged = connection.execute(told).one()
        metadata = {
            "from_seq": str(window.from_seq),
            "to_seq": str(window.to_seq),
            "version": str(judged.model_version),
        }
        _show_performance(watcher, watcher.log.between(window.from_seq, window.to_seq), metadata, judged.estimate)


def show_morning(watcher: Watcher, now: float) -> None:
    """The project's panels, and the page behind them, with links: as of the newest window and this look."""
    settings, board = watcher.settings, watcher.dashboard
    morning = how_things_stand(watcher.log.engine)
    errors = errors_told(settings, morning.version) if morning.version is not None else ""
    board.tell(now, _page(settings, morning, errors))
    text = " ".join([*(f"{line[:1].upper()}{line[1:]}." for line in morning.amiss[:4]), MORE])
    cards = [(moment(done.at), done.sentence) for done in morning.done[:4]]
    if errors:
        cards.append(("Why does the model err?", errors))
    sites = _worst_first(watcher)
    title = f"The live traffic of {settings.model_name}, window by window"
    board.ensure(
        title,
        sites,
        settings.task.classes,
        Standing(morning.headline, text, tuple(cards), settings.monitors.histograms),
    )


def _page(settings: Settings, morning: Morning, errors: str) -> str:
    """In Markdown: the headline, what is amiss, what was done and where to read more."""
    lines = [f"# {morning.headline}", *(f"- {line}" for line in morning.amiss)]
    if morning.version is not None:
        lines += ["", f"{_version_link(settings, morning.version)} serves."]
    if errors:
        lines += ["", errors]
    lines += ["", "## What was done"]
    for done in morning.done:
        more = [_version_link(settings, done.version)] if done.version is not None else []
        if done.flow_run_id:
            more.append(f"[its run]({settings.url('prefect')}/runs/flow-run/{done.flow_run_id})")
        lines.append(f"- {moment(done.at)}: {done.sentence}" + (f" ({', '.join(more)})" if more else ""))
    if not morning.done:
        lines.append("Nothing so far.")
    return "\n".join(lines)


def _version_link(settings: Settings, version: int) -> str:
    where = f"/#/models/{settings.model_name}/versions/{version}?workflowType=machine_learning"
    return f"[version {version}]({settings.url('mlflow')}{where})"


def _worst_first(watcher: Watcher) -> list[str]:
    """Every site that is known, those first that were furthest off in the last windows."""
    known = watcher.habit.sites
    if len(known) <= MOST_SITES:
        return sorted(known)
    newest = sa.select(WINDOWS.c.evidence["scopes"]).order_by(WINDOWS.c.window.desc()).limit(LABELS_MAY_TAKE)
    with watcher.log.engine.connect() as connection:
        windows = connection.execute(newest).scalars().all()
    worst = {site: max((float(w[site]["worst"]) for w in windows if w and site in w), default=0.0) for site in known}
    return sorted(known, key=lambda site: (-worst[site], site))
