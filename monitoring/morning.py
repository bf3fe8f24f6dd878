"""How things stand, in sentences: is it healthy, since when not, what and where, and what was done about it.

In: the log database. Out: one value whose lines go on top of the dashboard. It reads a bounded number of rows, however
long the log is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from monitoring.database import DECISIONS, HISTOGRAM_WINDOWS, MOVES, PROMOTIONS, SILENCES, WINDOWS
from monitoring.drift import OVERALL
from monitoring.findings import amiss
from monitoring.moves import CHAMPION, ENDED, HELD, ROLLED_BACK, SETTLED
from monitoring.silence import open_silences

_WINDOWS_BACK = 200
_LINES = 12


@dataclass(frozen=True)
class Morning:
    """headline: one sentence; amiss: what is wrong now, empty while all is well; done: newest first."""

    headline: str
    amiss: tuple[str, ...]
    done: tuple[Done, ...]
    version: int | None  # of the newest window


@dataclass(frozen=True)
class Done:
    """One thing that happened. version, flow_run_id: where to read more."""

    at: float
    sentence: str
    version: int | None = None
    flow_run_id: str | None = None


def how_things_stand(engine: sa.Engine) -> Morning:
    """As of the newest window and the last look for silence."""
    w, h = WINDOWS.c, HISTOGRAM_WINDOWS.c
    with engine.connect() as connection:
        windows, latest = _newest(connection, WINDOWS, w.started_at)
        histograms, counted = _newest(connection, HISTOGRAM_WINDOWS, h.at)
    silences, done = open_silences(engine), what_was_done(engine)
    wrong = [silence.sentence for silence in silences]
    sick = []  # (since when, how that is called)
    for what, seen, newest in (("windows", windows, latest), ("histograms", histograms, counted)):
        run = next((length for length, window in enumerate(seen) if not _unwell(window)), len(seen))
        if run:
            sick.append((seen[run - 1].started_at, f"the last {run} {what}" if run > 1 else f"the last of the {what}"))
            wrong += [f"{line}, by the sites' histograms" if seen is histograms else line for line in _amiss(newest)]
    if silences:
        sick.append((silences[0].since, "a site is silent"))
    version = max((int(seen[0].model_version) for seen in (windows, histograms) if seen), default=None)
    if sick:
        since, why = min(sick)
        headline = f"Not as expected since {moment(since)} ({why})"
    elif windows or histograms:
        seen = windows or histograms
        well = next((length for length, window in enumerate(seen) if _unwell(window)), len(seen))
        headline = f"Healthy since {moment(seen[well - 1].started_at)} (the last {well} windows are as expected)"
    else:
        headline = "No window of traffic is complete yet"
    return Morning(headline, tuple(wrong), done, version)


def what_was_done(engine: sa.Engine) -> tuple[Done, ...]:
    """Decisions and what came of them, promotions and rollbacks, silences: newest first."""
    done: list[Done] = []
    with engine.connect() as connection:
        for table in (DECISIONS, PROMOTIONS, MOVES, SILENCES):
            order = table.c.noticed_at if table is SILENCES else next(iter(table.primary_key))
            for row in connection.execute(sa.select(table).order_by(order.desc()).limit(_LINES)).mappings():
                done += _TELL[table.name](row)
    return tuple(sorted(done, key=lambda each: -each.at)[:_LINES])


def _decided(row: sa.RowMapping) -> list[Done]:
    """One line while it is open, two once it is closed."""
    name, why = f"decision {row['decision']}", row["evidence"].get("sentence", row["cause"])
    states = {"waiting": "waits", "emitted": "is announced", "running": "is being worked on"}
    if (state := states.get(row["state"])) is not None:
        return [Done(row["created_at"], f"{name} {state}: {why}", flow_run_id=row["flow_run_id"])]
    closed = Done(row["updated_at"], f"{name} {row['state']}: {row['outcome']}", flow_run_id=row["flow_run_id"])
    return [closed, Done(row["created_at"], f"{name}: {why}")]


def _promoted(row: sa.RowMapping) -> list[Done]:
    who = "nobody serves" if row["version"] is None else f"version {row['version']} serves"
    before = "" if row["previous"] is None else f" instead of {row['previous']}"
    return [Done(row["at"], f"{who}{before}: {row['reason']}", version=row["version"])]


def _moved(row: sa.RowMapping) -> list[Done]:
    """Shadow, canary, held, settled; who serves is said by the promotions."""
    if row["to_step"] in (CHAMPION, ROLLED_BACK, ENDED):
        return []
    into = f"is {row['to_step']}" if row["to_step"] in (HELD, SETTLED) else f"goes into {row['to_step']}"
    return [Done(row["at"], f"version {row['version']} {into}: {row['reason']}", version=row["version"])]


def _silent(row: sa.RowMapping) -> list[Done]:
    began = Done(row["noticed_at"], row["sentence"])
    return [began, *([Done(row["ended_at"], f"{row['site']} is no longer silent")] if row["ended_at"] else [])]


_TELL = {DECISIONS.name: _decided, PROMOTIONS.name: _promoted, MOVES.name: _moved, SILENCES.name: _silent}


def moment(at: float) -> str:
    """In the clock of whoever reads the dashboard's axes: this machine's."""
    return datetime.fromtimestamp(at).strftime("%a %d %b %H:%M")


def _newest(
    connection: sa.Connection, table: sa.Table, since: sa.Column[float]
) -> tuple[Sequence[sa.Row[Any]], dict[str, Any]]:
    """The last windows in short, newest first, and the evidence of the newest: all of it may be large."""
    t = table.c
    short = sa.select(
        t.window, since.label("started_at"), t.model_version, t.odd, t.evidence["quality"].label("quality")
    )
    seen = connection.execute(short.order_by(t.window.desc()).limit(_WINDOWS_BACK)).all()
    if not seen:
        return seen, {}
    return seen, connection.execute(sa.select(t.evidence).where(t.window == seen[0].window)).scalar_one()


def _unwell(window: sa.Row[Any]) -> bool:
    return bool(window.odd or amiss(window.quality or ()))


def _amiss(evidence: dict[str, Any]) -> list[str]:
    """What was wrong in a window, the worst first; empty where nothing was."""
    said = []
    scopes: dict[str, Any] = {name: seen for name, seen in evidence.get("scopes", {}).items() if seen["odd"]}
    if scopes:
        said.append(_drifted(scopes, list(evidence.get("mix", {}))))
    return said + amiss(evidence.get("quality", ()))


def _drifted(scopes: dict[str, Any], watched: Sequence[str]) -> str:
    """For example: brightness is 0.10 and was 0.32 (7.1 x its threshold) at site-3."""
    sites = [name for name in scopes if name != OVERALL]
    worst = max(scopes.values(), key=lambda seen: seen["worst"])
    column = max(worst["columns"].values(), key=lambda each: each["ratio"])
    where = f"at {', '.join(sites)}" if sites else "over all sites together"
    if len(sites) == len(watched) > 1:
        where = f"at all {len(sites)} sites"
    figure = f"{column['now']:.2f} and was {column['was']:.2f}"
    return f"{column['what']} is {figure} ({column['ratio']:.1f} x its threshold) {where}"
