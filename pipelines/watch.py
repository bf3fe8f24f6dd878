"""One look at the live traffic: every complete window that has not been reported yet is judged, shown and recorded.

In: the traffic log, and the references of the versions that served it. Out: rows in WINDOWS, snapshots on the
dashboard, and, when the alarm's rules say so, a decision. Snapshots first, the row second, both named by the window's
first seq: a look that dies in between is repeated by the next one and shows nothing twice.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pandas as pd
import sqlalchemy as sa

from monitoring import alarm, asked, deciding, health, silence
from monitoring.dashboard import Dashboard
from monitoring.database import WINDOWS
from monitoring.drift import OVERALL, DriftPolicy
from monitoring.findings import amiss
from monitoring.habit import Past, read_habit
from monitoring.silence import Silence
from monitoring.traffic import TrafficLog
from pipelines.judging import Watcher, judge
from pipelines.settings import Settings
from pipelines.showing import late_labels, show, show_morning


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
        notes = "".join(f"; {note}" for note in [*self.evidence["notes"], *amiss(self.evidence["quality"])])
        if OVERALL not in scopes:
            return f"{where}: not judged{notes}"
        worst = max(scopes, key=lambda scope: scopes[scope]["worst"])
        figure = f"worst column at {scopes[worst]['worst']:.1f} x its threshold ({worst})"
        return f"{where}: {'odd' if self.odd else 'as expected'}, {figure}{notes}"


def look(settings: Settings, limit: int = 20, now: float | None = None, draw: bool = True) -> list[WindowReport]:
    """Report the windows that are complete, oldest first and `limit` at most; the alarm is asked after each.

    draw: onto the dashboard, which takes most of the time and decides nothing.
    """
    log = TrafficLog.open(settings.database_url, settings.images)
    habit = read_habit(log.engine, settings.monitors.habit_windows)
    watcher = Watcher(settings, log, Dashboard(settings.dashboard, settings.model_name), habit, drawn=draw)
    reports: list[WindowReport] = []
    try:
        # The dashboard's UI passes over what is written into a folder without a project.
        if draw and not watcher.dashboard.exists():
            show_morning(watcher, time.time() if now is None else now)
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
        asked.settle(log, settings.alarm, now)
        moment = time.time() if now is None else now
        silence.listen(log.engine, watcher.habit, settings.monitors, moment)
        if draw:
            late_labels(watcher)
            show_morning(watcher, moment)
        if reports:
            health.prune(log.engine, moment - settings.monitors.keep_health_days * 86_400.0)
        if draw and reports:
            watcher.dashboard.retain(settings.drift.keep_reports, settings.drift.keep_full)
        return reports
    finally:
        log.close()


def silent(settings: Settings) -> list[Silence]:
    """The sites that were silent at the last look, the longest first."""
    log = TrafficLog.open(settings.database_url, settings.images)
    try:
        return silence.open_silences(log.engine)
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

    A window is the next `window_rows` rows; where they take longer than `max_age_s` to come into the log, the rows of
    that time, but `minimum_rows` at least. Where it ends depends on the log alone, so it is the same after a downtime.
    What the senders' clocks say does not matter, and a server's clock that is set back adds nothing to the age.
    """
    newest = sa.select(WINDOWS.c.to_seq).order_by(WINDOWS.c.from_seq.desc()).limit(1)
    with log.engine.connect() as connection:
        start = int(connection.execute(newest).scalar() or 1)
    rows = log.window(start, policy.window_rows, policy.lateness_s, now)
    if len(rows) < policy.minimum_rows:
        return None
    age = rows["logged_at"].diff().clip(lower=0.0).fillna(0.0).cumsum()
    in_time = int((age <= policy.max_age_s).sum())
    if in_time == policy.window_rows:
        return rows
    silence = max(0.0, now - policy.lateness_s - float(rows["logged_at"].iloc[-1]))
    if in_time == len(rows) and float(age.iloc[-1]) + silence <= policy.max_age_s:
        return None
    return rows.iloc[: max(in_time, policy.minimum_rows)]


# -- one window -------------------------------------------------------------------------------------------------


def _report(watcher: Watcher, rows: pd.DataFrame, now: float) -> WindowReport | None:
    """Judge, show and record one window; None when another monitor has recorded it meanwhile."""
    settings, began = watcher.settings, time.perf_counter()
    version = int(Counter(rows["model_version"]).most_common(1)[0][0])
    judged = judge(watcher, rows, version)
    if watcher.drawn:
        show(watcher, judged, rows)
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
        watcher.habit = read_habit(watcher.log.engine, settings.monitors.habit_windows)
        return None
    assert inserted is not None
    watcher.habit = watcher.habit.with_window(Past(row["ended_at"], judged.sites), settings.monitors.habit_windows)
    decision = deciding.decide(
        watcher.log.engine,
        settings.alarm,
        measured=watcher.reference(version).held_out,
        label_budget=settings.labels.budget_share,
        now=now,
    )
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
