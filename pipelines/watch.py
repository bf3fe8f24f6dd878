"""One look at the live traffic: every complete window that has not been reported yet is judged, shown and recorded.

In: the traffic log, and the references of the versions that served it. Out: rows in WINDOWS, snapshots on the
dashboard, and, when the alarm's rules say so, a decision. Snapshots first, the row second, both named by the window's
first seq: a look that dies in between is repeated by the next one and shows nothing twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa
from numpy.typing import NDArray

from models.embedding import nearest_centroid
from models.errors import FedloopError
from models.images import decode_png
from monitoring import alarm, deciding, drift, performance
from monitoring.dashboard import PERFORMANCE, Dashboard, Figure, figures_of
from monitoring.database import LABELS, PREDICTIONS, WINDOWS
from monitoring.drift import COLUMNS, OVERALL, DriftPolicy, ScopeDrift
from monitoring.traffic import TrafficLog
from pipelines.diagnose import errors_told
from pipelines.reference import Reference, named, read_reference
from pipelines.settings import Settings

LABELS_MAY_TAKE = 40  # windows whose accuracy is looked at again, because labels come late
ESTIMATE_FROM = 10  # windows before one whose labels correct its estimated accuracy


@dataclass(frozen=True)
class WindowReport:
    """What one window showed; the evidence of its row in WINDOWS, and the decision it led to."""

    window: int
    from_seq: int
    to_seq: int
    rows: int
    model_version: int
    odd: bool
    evidence: dict[str, Any]
    seconds: float
    decision: alarm.Decision | None = None

    @property
    def sentence(self) -> str:
        scopes = self.evidence["scopes"]
        where = f"window {self.window} ({self.rows} rows, version {self.model_version})"
        notes = "".join(f"; {note}" for note in self.evidence["notes"])
        if OVERALL not in scopes:
            return f"{where}: not judged{notes}"
        worst = max(scopes, key=lambda scope: scopes[scope]["worst"])
        figure = f"worst column at {scopes[worst]['worst']:.1f} x its threshold ({worst})"
        return f"{where}: {'odd' if self.odd else 'as expected'}, {figure}{notes}"


@dataclass
class Watcher:
    """What one look keeps open: the log, the dashboard, and the references it has read so far."""

    settings: Settings
    log: TrafficLog
    dashboard: Dashboard
    references: dict[int, Reference] = field(default_factory=dict)
    prepared: bool = False  # the dashboard's panels have been checked
    drawn: bool = True

    def reference(self, version: int) -> Reference:
        if version not in self.references:
            self.references[version] = read_reference(self.settings, version)
        return self.references[version]


def look(settings: Settings, limit: int = 20, now: float | None = None, draw: bool = True) -> list[WindowReport]:
    """Report the windows that are complete, oldest first and `limit` at most; the alarm is asked after each.

    draw: onto the dashboard, which takes most of the time and decides nothing.
    """
    log = TrafficLog.open(settings.database_url, settings.images)
    watcher = Watcher(settings, log, Dashboard(settings.dashboard, settings.model_name), drawn=draw)
    reports: list[WindowReport] = []
    try:
        while len(reports) < limit:
            moment = time.time() if now is None else now
            rows = next_window(log, settings.drift, moment)
            if rows is None:
                if now is None and next_window(log, settings.drift, moment + settings.drift.lateness_s) is not None:
                    time.sleep(settings.drift.lateness_s)  # it only has to settle
                    continue
                break
            report = _report(watcher, rows, moment)
            if report is not None:
                reports.append(report)
        if draw:
            _late_labels(watcher)
        if draw and reports:
            watcher.dashboard.retain(settings.drift.keep_reports, settings.drift.keep_full)
        return reports
    finally:
        log.close()


def ready(settings: Settings) -> list[alarm.Decision]:
    """Decisions that wait and have enough new rows behind them to be announced."""
    log = TrafficLog.open(settings.database_url, settings.images)
    try:
        return [
            decision
            for decision in alarm.pending(log.engine)
            if decision.state == "waiting"
            and alarm.enough_rows(log.engine, decision, settings.retrain.minimum_new_rows)
        ]
    finally:
        log.close()


# -- which rows -------------------------------------------------------------------------------------------------


def next_window(log: TrafficLog, policy: DriftPolicy, now: float) -> pd.DataFrame | None:
    """The rows of the next unreported window, or None while it is not complete.

    A window is the next `window_rows` rows; where they take longer than `max_age_s`, the rows of that time, but
    `minimum_rows` at least. Where it ends depends on the log alone, so it is the same after a downtime.
    """
    with log.engine.connect() as connection:
        start = int(connection.execute(sa.select(sa.func.max(WINDOWS.c.to_seq))).scalar_one() or 1)
    rows = log.window(start, policy.window_rows, policy.lateness_s, now)
    if len(rows) < policy.minimum_rows:
        return None
    deadline = float(rows["at"].iloc[0]) + policy.max_age_s
    in_time = int((rows["at"] <= deadline).sum())
    if in_time == policy.window_rows:
        return rows
    if in_time == len(rows) and now - policy.lateness_s <= deadline:
        return None
    return rows.iloc[: max(in_time, policy.minimum_rows)]


# -- one window -------------------------------------------------------------------------------------------------


def _report(watcher: Watcher, rows: pd.DataFrame, now: float) -> WindowReport | None:
    """Judge, show and record one window; None when another monitor has recorded it meanwhile."""
    settings, began = watcher.settings, time.perf_counter()
    version = int(Counter(rows["model_version"]).most_common(1)[0][0])
    judged = _judge(watcher, rows, version)
    if watcher.drawn:
        _show(watcher, judged, rows)
    row: dict[str, Any] = {
        "from_seq": int(rows["seq"].iloc[0]),
        "to_seq": int(rows["seq"].iloc[-1]) + 1,
        "rows": len(rows),
        "started_at": float(rows["at"].min()),
        "ended_at": float(rows["at"].max()),
        "model_version": version,
        "odd": int(any(scope.odd for scope in judged.scopes)),
        "evidence": judged.evidence(),
    }
    try:
        with watcher.log.engine.begin() as connection:
            inserted = connection.execute(sa.insert(WINDOWS).values(row)).inserted_primary_key
    except sa.exc.IntegrityError:
        return None
    assert inserted is not None
    decision = deciding.decide(watcher.log.engine, settings.alarm, label_budget=settings.labels.budget_share, now=now)
    return WindowReport(
        window=int(inserted[0]),
        from_seq=row["from_seq"],
        to_seq=row["to_seq"],
        rows=len(rows),
        model_version=version,
        odd=bool(row["odd"]),
        evidence=row["evidence"],
        seconds=time.perf_counter() - began,
        decision=decision,
    )


@dataclass(frozen=True)
class Judged:
    """A window's rows that could be compared, what they are compared with, and what came of it."""

    version: int
    site: pd.Series
    current: pd.DataFrame
    reference: pd.DataFrame
    scopes: tuple[ScopeDrift, ...]  # overall first; empty where nothing could be compared
    notes: tuple[str, ...]

    @property
    def mix(self) -> dict[str, int]:
        return {str(site): int(count) for site, count in sorted(Counter(self.site).items())}

    def evidence(self) -> dict[str, Any]:
        """For the window's row: every column of every scope, with the counts that the alarm adds up."""
        scopes = {
            scope.scope: {
                "rows": scope.rows,
                "odd": scope.odd,
                "worst": scope.worst,
                "columns": {column.column: asdict(column) for column in scope.columns},
            }
            for scope in self.scopes
        }
        return {"rows": len(self.site), "mix": self.mix, "notes": list(self.notes), "scopes": scopes}


def _judge(watcher: Watcher, rows: pd.DataFrame, version: int) -> Judged:
    policy, reference = watcher.settings.drift, watcher.reference(version)
    served = rows["model_version"] == version
    known = served & rows["site"].isin(list(reference.sites))
    notes = []
    if not served.all():
        notes.append(f"{int((~served).sum())} rows of other versions are left out")
    if strangers := sorted(set(rows.loc[served & ~known, "site"])):
        notes.append(f"version {version} has no reference of {', '.join(map(str, strangers))}")
    if reference.sites and reference.centroids is None:
        notes.append(f"the embedding is not watched: the data summary of version {version} cannot be read")
    own = rows[known].reset_index(drop=True)
    current = named(drift.clean(own.assign(embedding_distance=_distances(watcher, own, reference))), watcher.settings)
    columns = [c for c in COLUMNS if c != "embedding_distance" or reference.centroids is not None]
    mixed, worth = drift.mixed_reference(reference.sites, Counter(own["site"]), policy.reference_rows)
    scopes: list[ScopeDrift] = []
    if len(own) < policy.minimum_rows:
        notes.append(f"only {len(own)} rows can be compared")
    else:
        scopes.append(drift.compare(OVERALL, current, mixed, worth, reference.calibration, policy, columns))
        for site, index in sorted(own.groupby("site").indices.items()):
            if len(index) >= policy.site_minimum_rows:
                there, here = reference.sites[str(site)], current.iloc[index]
                scopes.append(drift.compare(str(site), here, there, len(there), reference.calibration, policy, columns))
    return Judged(version, own["site"], current, mixed, tuple(scopes), tuple(notes))


def _distances(watcher: Watcher, rows: pd.DataFrame, reference: Reference) -> NDArray[np.float64]:
    """Each row's distance to the nearest centroid of the data summary; NaN where its picture cannot be read."""
    found = np.full(len(rows), np.nan)
    if reference.centroids is None or rows.empty:
        return found
    task = watcher.settings.task
    pictures = {}
    for name in set(rows["image_hash"]):
        try:
            pictures[name] = decode_png(watcher.log.image(name), task.input)
        except FedloopError:
            continue
    readable = rows["image_hash"].isin(list(pictures)).to_numpy()
    if readable.any():
        images = np.stack([pictures[name] for name in rows.loc[readable, "image_hash"]])
        found[readable] = nearest_centroid(task.embed(images), reference.centroids)[1]
    return found


# -- showing it -------------------------------------------------------------------------------------------------


def _show(watcher: Watcher, judged: Judged, rows: pd.DataFrame) -> None:
    settings, from_seq = watcher.settings, int(rows["seq"].iloc[0])
    at, board = float(rows["at"].max()), watcher.dashboard
    if not watcher.prepared:
        sites = sorted(watcher.reference(judged.version).sites)
        title = f"The live traffic of {settings.model_name}, window by window"
        board.ensure(title, sites, settings.task.classes, errors_told(settings, judged.version))
        watcher.prepared = True
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
    _show_performance(watcher, rows, metadata)


def _show_performance(watcher: Watcher, rows: pd.DataFrame, metadata: Mapping[str, str]) -> None:
    log, policy = watcher.log, watcher.settings.drift
    from_seq = int(rows["seq"].iloc[0])
    before = log.between(max(1, from_seq - ESTIMATE_FROM * policy.window_rows), from_seq)
    gap = performance.overconfidence(before[before["model_version"] == int(metadata["version"])])
    figures = [Figure("estimated accuracy", OVERALL, performance.estimated_accuracy(rows, gap))]
    for found in performance.accuracies(rows):
        figures.append(Figure("accuracy", found.scope, found.value))
        figures.append(Figure("accuracy low", found.scope, found.low))
        figures.append(Figure("accuracy high", found.scope, found.high))
    labels = {"labels": str(performance.labelled_rows(rows))}
    watcher.dashboard.write(from_seq, PERFORMANCE, float(rows["at"].max()), figures, metadata=dict(metadata) | labels)


def _late_labels(watcher: Watcher) -> None:
    """Draw the accuracy of the last windows anew where labels have come since."""
    w, p = WINDOWS.c, PREDICTIONS.c
    last = sa.select(w.from_seq, w.to_seq, w.model_version).order_by(w.window.desc()).limit(LABELS_MAY_TAKE).subquery()
    counted = (
        sa.select(last, sa.func.count(sa.distinct(p.prediction_id)).label("labels"))
        .join(PREDICTIONS, sa.and_(p.seq >= last.c.from_seq, p.seq < last.c.to_seq))
        .join(LABELS, LABELS.c.prediction_id == p.prediction_id)
        .group_by(last.c.from_seq, last.c.to_seq, last.c.model_version)
        .order_by(last.c.from_seq)
    )
    with watcher.log.engine.connect() as connection:
        found = connection.execute(counted).all()
    for window in found:
        shown = watcher.dashboard.metadata(window.from_seq, PERFORMANCE)
        if shown.get("labels") != str(window.labels):
            metadata = {"from_seq": str(window.from_seq), "to_seq": str(window.to_seq)}
            metadata["version"] = str(window.model_version)
            _show_performance(watcher, watcher.log.between(window.from_seq, window.to_seq), metadata)
