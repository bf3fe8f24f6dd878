"""A site that has fallen silent: no window closes with its rows, so no window can say it.

In: the habit, and the last row that the log holds of every site. Out: rows in SILENCES, opened once and closed when the
site sends again. A site is silent when its pause is several times its longest so far, and
- the others have meanwhile sent so many rows that by its share there should be dozens of it among them, or
- the pauses of at least a day are known, so that its nights are.
A site that nobody has heard of for as long as the habit reaches is no longer expected.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from monitoring.database import PREDICTIONS, SILENCES, insert_new
from monitoring.findings import MonitorPolicy
from monitoring.habit import Habit

_DAY_S = 86_400.0
_ENOUGH_WINDOWS = 3


@dataclass(frozen=True)
class Silence:
    """A row of SILENCES. since: event time of the site's last row; ended_at: None while it lasts."""

    site: str
    since: float
    noticed_at: float
    ended_at: float | None
    sentence: str


def open_silences(engine: sa.Engine) -> list[Silence]:
    """Those that last, the longest first."""
    s = SILENCES.c
    with engine.connect() as connection:
        rows = connection.execute(sa.select(SILENCES).where(s.ended_at.is_(None)).order_by(s.since)).mappings()
        return [Silence(**row) for row in rows]


def listen(engine: sa.Engine, habit: Habit, policy: MonitorPolicy, now: float) -> tuple[list[Silence], list[Silence]]:
    """Open and close silences as of now; returns those that began and those that ended with this call.

    It costs one indexed look-up for each site, however large the log is.
    """
    known = sorted(habit.sites)
    last = _last_rows(engine, known)
    newest = max((seq for seq, _ in last.values()), default=0)
    began, ended = [], []
    for silence in open_silences(engine):
        heard = last.get(silence.site)
        if silence.site not in known or (heard is not None and heard[1] > silence.since):
            moment = heard[1] if heard is not None and heard[1] > silence.since else now
            if _close(engine, silence, moment):
                ended.append(silence)
    for site in known:
        said = _judge(site, last[site], newest, habit, policy, now) if site in last else ""
        if said:
            silence = Silence(site, last[site][1], now, None, said)
            with engine.begin() as connection:
                # Not its rowcount, which PostgreSQL's driver does not say here.
                new = insert_new(engine, SILENCES).returning(SILENCES.c.site)
                if connection.execute(new, vars(silence)).first() is not None:
                    began.append(silence)
    return began, ended


def _judge(site: str, last: tuple[int, float], newest: int, habit: Habit, policy: MonitorPolicy, now: float) -> str:
    """Why the site counts as silent, in a sentence; empty where it does not."""
    windows = [window for window in habit.past if site in window.sites]
    longest = max(window.sites[site].longest_gap_s for window in windows)
    pause = now - last[1]
    if len(windows) < _ENOUGH_WINDOWS or pause <= max(policy.silence_floor_s, policy.silence_factor * longest):
        return ""
    rows = sum(told.rows for window in windows for told in window.sites.values())
    share = sum(window.sites[site].rows for window in windows) / rows
    missed = (newest - last[0]) * share / max(1.0 - share, 1e-9)
    days = (windows[-1].ended_at - windows[0].sites[site].first_at) / _DAY_S
    if missed < policy.silence_rows and days < 1.0:
        return ""
    instead = f"; by its share of the traffic {missed:.0f} rows are missing" if missed >= 1.0 else ""
    quiet = f"{site} has sent nothing for {_duration(pause)}"
    return f"{quiet}, and its longest pause so far was {_duration(longest)}{instead}"


def _last_rows(engine: sa.Engine, sites: list[str]) -> dict[str, tuple[int, float]]:
    """site → (seq, event time) of its last row."""
    p = PREDICTIONS.c
    found = {}
    with engine.connect() as connection:
        for site in sites:
            newest = sa.select(p.seq, p.at).where(p.site == site).order_by(p.seq.desc()).limit(1)
            if (row := connection.execute(newest).first()) is not None:
                found[site] = (int(row.seq), float(row.at))
    return found


def _close(engine: sa.Engine, silence: Silence, moment: float) -> bool:
    s = SILENCES.c
    this = (s.site == silence.site) & (s.since == silence.since) & s.ended_at.is_(None)
    with engine.begin() as connection:
        return bool(connection.execute(sa.update(SILENCES).where(this).values(ended_at=moment)).rowcount == 1)


def _duration(seconds: float) -> str:
    """In the unit that a person would say it in."""
    for unit, size in (("days", _DAY_S), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
