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

from monitoring.database import DECISIONS, PROMOTIONS, SILENCES, WINDOWS
from monitoring.drift import OVERALL
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
    w = WINDOWS.c
    newest = sa.select(w.window, w.ended_at, w.model_version, w.odd, w.evidence).order_by(w.window.desc())
    with engine.connect() as connection:
        windows = connection.execute(newest.limit(_WINDOWS_BACK)).all()
    silences = open_silences(engine)
    amiss = [silence.sentence for silence in silences]
    version = int(windows[0].model_version) if windows else None
    if not windows:
        return Morning("No window of traffic is complete yet", tuple(amiss), what_was_done(engine), version)
    unwell = [_amiss(window) for window in windows]
    run = next((length for length, said in enumerate(unwell) if not said), len(unwell))
    amiss += unwell[0]
    if run:
        since = windows[run - 1]
        more = "or longer" if run == len(unwell) == _WINDOWS_BACK else f"window {since.window}"
        headline = f"Not healthy since {moment(since.ended_at)} ({more})"
    elif silences:
        headline = f"Not healthy since {moment(silences[0].since)}: a site is silent"
    else:
        well = next((length for length, said in enumerate(unwell) if said), len(unwell))
        since = windows[well - 1]
        headline = f"Healthy: the last {well} windows are as expected, since {moment(since.ended_at)}"
    return Morning(headline, tuple(amiss), what_was_done(engine), version)


def what_was_done(engine: sa.Engine) -> tuple[Done, ...]:
    """Decisions and what came of them, promotions and rollbacks, silences: newest first."""
    done: list[Done] = []
    with engine.connect() as connection:
        decided = sa.select(DECISIONS).order_by(DECISIONS.c.decision.desc()).limit(_LINES)
        for row in connection.execute(decided).mappings():
            why = str(row["evidence"].get("sentence", row["cause"]))
            done.append(Done(row["created_at"], f"decision {row['decision']}: {why}"))
            said = row["outcome"] or {
                "waiting": "waits",
                "emitted": "is announced",
                "running": "is being worked on",
            }.get(row["state"], row["state"])
            line = (
                f"decision {row['decision']} {row['state']}: {said}"
                if row["outcome"]
                else f"decision {row['decision']} {said}"
            )
            done.append(Done(row["updated_at"], line, flow_run_id=row["flow_run_id"]))
        for row in connection.execute(
            sa.select(PROMOTIONS).order_by(PROMOTIONS.c.promotion.desc()).limit(_LINES)
        ).mappings():
            who = "nobody serves" if row["version"] is None else f"version {row['version']} serves"
            before = "" if row["previous"] is None else f" instead of {row['previous']}"
            done.append(Done(row["at"], f"{who}{before}: {row['reason']}", version=row["version"]))
        for row in connection.execute(
            sa.select(SILENCES).order_by(SILENCES.c.noticed_at.desc()).limit(_LINES)
        ).mappings():
            done.append(Done(row["noticed_at"], row["sentence"]))
            if row["ended_at"] is not None:
                done.append(Done(row["ended_at"], f"{row['site']} is no longer silent"))
    return tuple(sorted(done, key=lambda each: -each.at)[:_LINES])


def moment(at: float) -> str:
    """In the clock of whoever reads the dashboard's axes: this machine's."""
    return datetime.fromtimestamp(at).strftime("%a %d %b %H:%M")


def _amiss(window: Any) -> list[str]:
    """What was wrong in a window, the worst first; empty where nothing was."""
    evidence = window.evidence
    said = []
    scopes: dict[str, Any] = {name: seen for name, seen in evidence.get("scopes", {}).items() if seen["odd"]}
    if scopes:
        said.append(_drifted(scopes, list(evidence.get("mix", {}))))
    said += [finding["sentence"] for finding in evidence.get("quality", ()) if finding["odd"]]
    return said


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
