"""From the reported windows to a decision: is the evidence enough, what has probably happened, what does it call for?

In: the rows of WINDOWS and of DECISIONS, which are all the state there is. Out: a decision with its evidence and a
sentence, or None. Windows of an older model version, or that an earlier decision has used, do not count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from monitoring import alarm
from monitoring.database import WINDOWS
from monitoring.detector import Evidence, Window, detect, period_of
from monitoring.drift import OVERALL
from monitoring.error_evidence import with_errors
from monitoring.estimate import NOTHING, Known
from monitoring.policy import AlarmPolicy
from monitoring.probable_cause import SILENCE, Facts, probable_cause, sentence, spans

_SILENT_ROWS = 15.0
"""Rows that a site must have sent in a usual window, for none at all in several to be silence: by chance, e to the
minus this for each window."""


def decide(
    engine: sa.Engine,
    policy: AlarmPolicy,
    *,
    measured: Known = NOTHING,
    label_budget: float | None = None,
    now: float | None = None,
) -> alarm.Decision | None:
    """Write the decision that the newest windows call for, if they do and the rules allow it.

    measured: how often the version that serves was right on the rows it was judged on.
    """
    moment = time.time() if now is None else now
    known = alarm.decisions(engine)
    newest = _newest(engine, policy)
    silent = _silence(_unused(newest, [one for one in known if one.cause == SILENCE.name]), policy)
    unused = _unused(newest, [one for one in known if one.cause != SILENCE.name])
    labelled = with_errors(engine, unused, measured, policy.error_margin)
    for cause, evidence in (silent, _drift(labelled, policy)):
        if evidence is None:
            continue
        evidence |= {"label_budget": label_budget}
        number = alarm.record(engine, cause, evidence, moment, policy)
        if number is not None:
            return next(one for one in alarm.decisions(engine) if one.decision == number)
    return None


def _newest(engine: sa.Engine, policy: AlarmPolicy) -> list[Window]:
    """The last windows of the model version that serves, oldest first."""
    statement = sa.select(WINDOWS).order_by(WINDOWS.c.window.desc()).limit(policy.memory_windows)
    with engine.connect() as connection:
        found = [dict(row) for row in connection.execute(statement).mappings()]
    return [window for window in reversed(found) if window["model_version"] == found[0]["model_version"]]


def _unused(windows: Sequence[Window], known: Sequence[alarm.Decision]) -> list[Window]:
    used = max((int(one.evidence.get("to_seq") or 0) for one in known), default=0)
    return [window for window in windows if window["from_seq"] >= used]


def _drift(windows: Sequence[Window], policy: AlarmPolicy) -> tuple[str, dict[str, Any] | None]:
    found = detect(windows, policy)
    if found.log_total < policy.log_level or not found.scopes:
        return "", None
    return _told(windows, found, policy)


def _told(windows: Sequence[Window], found: Evidence, policy: AlarmPolicy) -> tuple[str, dict[str, Any]]:
    """The cause, and the evidence as a person and the retraining read it."""
    loudest = found.scopes[0]
    since = [window for window in windows if window["window"] >= loudest.since]
    sites = sorted({one.scope for one in found.scopes if one.scope != OVERALL})
    watched = sorted({site for window in since for site in window["evidence"].get("mix", {})})
    everywhere = loudest.scope == OVERALL or len(sites) == len(watched)
    if everywhere and len(sites) < len(watched):
        sites = []
    told = [one for one in found.scopes if (one.scope == OVERALL) == (loudest.scope == OVERALL)]
    columns: dict[str, dict[str, Any]] = {}
    for name, log_evidence in ((n, e) for one in told for n, e in one.columns.items()):
        shown = [
            dict(window["evidence"]["scopes"][one.scope]["columns"][name], scope=one.scope)
            for one in told
            for window in since
            if name in window["evidence"]["scopes"].get(one.scope, {}).get("columns", {})
        ]
        worst = max(shown, key=lambda column: float(column["ratio"]))
        strength = max(log_evidence, columns.get(name, {}).get("log_evidence", 0.0))
        times = sum(column["ratio"] > 1.0 for column in shown)
        kept = {key: value for key, value in worst.items() if key not in ("tally", "labelled")}
        columns[name] = kept | {"times": times, "log_evidence": strength}
    columns = dict(sorted(columns.items(), key=lambda item: -item[1]["ratio"]))
    newest = [
        window["evidence"]["scopes"][one.scope]["columns"]
        for window in since[-policy.persistence :]
        for one in told
        if one.scope in window["evidence"]["scopes"]
    ]
    cause, severity = probable_cause(Facts(columns, everywhere, newest))
    numbers = [int(window["window"]) for window in since]
    evidence: dict[str, Any] = {
        "answer": cause.answer,
        "probable_cause": cause.name,
        "severity": severity,
        "sentence": sentence(columns, sites, watched, numbers, cause),
        "columns": columns,
        "scopes": sorted(one.scope for one in found.scopes),
        "sites": sites,
        "windows": numbers,
        "from_seq": int(since[0]["from_seq"]),
        "to_seq": int(since[-1]["to_seq"]),
        "model_version": int(since[-1]["model_version"]),
        "log_evidence": found.log_total,
    }
    return alarm.DRIFT if cause.answer == "retrain" else cause.name, evidence


def _silence(windows: Sequence[Window], policy: AlarmPolicy) -> tuple[str, dict[str, Any] | None]:
    """Sites that sent many rows in every window before and none in the last ones; nights may be declared."""
    judged = [w for w in windows if "mix" in w["evidence"] and period_of(w, policy.schedule) is None]
    last, before = judged[-policy.persistence :], judged[: -policy.persistence]
    if len(before) < policy.persistence:
        return "", None
    usual = {site for window in before for site in window["evidence"]["mix"]}
    many = {
        site for site in usual if sum(w["evidence"]["mix"].get(site, 0) for w in before) >= _SILENT_ROWS * len(before)
    }
    silent = sorted(site for site in many if not any(site in window["evidence"]["mix"] for window in last))
    if not silent:
        return "", None
    numbers = [int(window["window"]) for window in last]
    where = f"{', '.join(silent)} sent nothing in {spans(numbers)}"
    return SILENCE.name, {
        "answer": SILENCE.answer,
        "probable_cause": SILENCE.name,
        "severity": "warning",
        "sentence": f"{where}, after rows in every window before: {SILENCE.says}",
        "sites": silent,
        "windows": numbers,
        "columns": {},
        "from_seq": int(last[0]["from_seq"]),
        "to_seq": int(last[-1]["to_seq"]),
        "model_version": int(last[-1]["model_version"]),
    }
