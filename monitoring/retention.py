"""What the log may forget: the rows of reported windows that are too old, or too many bytes, and that nobody needs.

A window goes whole, in one transaction that writes its aggregates, takes its rows with their labels and takes their
pictures where no other row and no case has them. So no row is ever counted twice or not at all: it is in PREDICTIONS,
or in the sums of AGGREGATES. What monitors reported of the window stays in WINDOWS.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import sqlalchemy as sa
from pydantic import BaseModel, Field

from models.quality import QUALITY_COLUMNS
from monitoring import alarm
from monitoring.database import AGGREGATES, METADATA, MOVES, PREDICTIONS, WINDOWS, insert_new
from monitoring.traffic import LABEL_COLUMN, LOGGED_AT, TrafficLog, read

ROW_BYTES = 700
"""What a row takes in the database with its indexes, measured (`benchmarks/log.py`); its picture comes on top."""
_CHUNK = 500
_SAMPLES, _RUN = 20, 200


class RetentionPolicy(BaseModel):
    """How much of the log is kept; 0 is no limit. A picture that came several times counts for each row."""

    keep_days: float = Field(0.0, ge=0, description="rows older than this go")
    keep_gb: float = Field(0.0, ge=0, description="rows and pictures beyond this many 10^9 bytes go, the oldest first")


@dataclass(frozen=True)
class Window:
    """Half-open: from_seq <= seq < to_seq."""

    from_seq: int
    to_seq: int


@dataclass(frozen=True)
class Plan:
    """What may go now, oldest first, and how many bytes the log is over its limit because the rest is still needed."""

    windows: tuple[Window, ...]
    over_bytes: int


@dataclass(frozen=True)
class Removed:
    windows: int
    rows: int
    pictures: int
    picture_bytes: int


def needed_from(engine: sa.Engine, newest_rows: int, newest_windows: int) -> int:
    """The seq from which on every row stays.

    Needed are rows that no window has reported, those that an open decision or a request for labels speaks of, the
    newest rows, from which a retraining without a decision learns, the newest windows, whose labels may still come, and
    the evidence of the newest release.
    """
    p, w = PREDICTIONS.c.seq, WINDOWS.c
    bounds = [
        sa.select(w.to_seq).order_by(w.from_seq.desc()).limit(1),
        sa.select(w.from_seq).order_by(w.from_seq.desc()).limit(1).offset(max(newest_windows - 1, 0)),
        sa.select(p).order_by(p.desc()).limit(1).offset(max(newest_rows - 1, 0)),
    ]
    released = sa.select(MOVES.c.from_seq).order_by(MOVES.c.move.desc()).limit(1)
    with engine.connect() as connection:
        found = [connection.execute(bound).scalar() or 0 for bound in bounds]
        found += [seq for seq in connection.execute(released).scalars() if seq]
    open_ones = [d for d in alarm.decisions(engine) if d.state in (*alarm.OPEN, *alarm.UNANSWERED)]
    return int(min(found + [int(d.evidence.get("from_seq") or 0) for d in open_ones if "from_seq" in d.evidence]))


def plan(engine: sa.Engine, policy: RetentionPolicy, needed: int, now: float | None = None) -> Plan:
    """What the policy wants away and `needed_from` lets go."""
    if not policy.keep_days and not policy.keep_gb:
        return Plan((), 0)
    moment = time.time() if now is None else now
    w, p = WINDOWS.c, PREDICTIONS.c
    # A window that is still there has its last row.
    there = (
        sa.select(w.from_seq, w.to_seq, w.rows, LOGGED_AT)
        .join(PREDICTIONS, p.seq == w.to_seq - 1)
        .where(w.to_seq <= needed)
        .order_by(w.from_seq)
    )
    with engine.connect() as connection:
        found = connection.execute(there).all()
        row_bytes, over = 0.0, 0.0
        if policy.keep_gb:
            row_bytes = ROW_BYTES + _picture_bytes(connection)
            count = connection.execute(sa.select(sa.func.count()).select_from(PREDICTIONS)).scalar_one()
            over = count * row_bytes - policy.keep_gb * 1e9
    going = []
    for row in found:
        old = policy.keep_days and row.logged_at < moment - policy.keep_days * 86_400
        if old or over > 0:
            going.append(Window(row.from_seq, row.to_seq))
            over -= row.rows * row_bytes
    return Plan(tuple(going), max(round(over), 0))


def _picture_bytes(connection: sa.Connection) -> float:
    """Of a row, in the mean over runs of rows from all parts of the log: to add them all up would be to read it."""
    p = PREDICTIONS.c
    first, last = connection.execute(sa.select(sa.func.min(p.seq), sa.func.max(p.seq))).one()
    sizes: dict[int, int] = {}
    for place in range(_SAMPLES if first else 0):
        start = first + (last - first) * place // _SAMPLES
        run = sa.select(p.seq, sa.func.coalesce(p.picture_bytes, 0)).where(p.seq >= start).order_by(p.seq).limit(_RUN)
        sizes.update(connection.execute(run).tuples().all())
    return sum(sizes.values()) / max(len(sizes), 1)


def prune(log: TrafficLog, windows: Iterable[Window], now: float | None = None) -> Removed:
    """Take the windows out of the log, each in one transaction; a service may write and label at the same time.

    Killed in between, the same again goes on; a window that is gone already changes nothing.
    """
    moment = time.time() if now is None else now
    done = Removed(0, 0, 0, 0)
    for window in windows:
        began = time.monotonic()
        rows, sizes = _remove(log, window, moment)
        freed = [size for size in sizes if size]
        done = Removed(
            done.windows + (rows > 0), done.rows + rows, done.pictures + len(freed), done.picture_bytes + sum(freed)
        )
        time.sleep(time.monotonic() - began)  # SQLite's writers take turns only where one leaves them time
    return done


def _remove(log: TrafficLog, window: Window, now: float) -> tuple[int, list[int]]:
    inside = (PREDICTIONS.c.seq >= window.from_seq) & (PREDICTIONS.c.seq < window.to_seq)
    with log.engine.begin() as connection:
        if log.engine.dialect.name == "postgresql":
            connection.execute(sa.select(PREDICTIONS.c.seq).where(inside).with_for_update())
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        rows = read(connection, window.from_seq, window.to_seq)
        if rows.empty:
            return 0, []
        connection.execute(insert_new(log.engine, AGGREGATES), aggregates(rows, window.from_seq, now))
        own = sa.select(PREDICTIONS.c.prediction_id).where(inside)
        for table in METADATA.sorted_tables:
            if "prediction_id" in table.c and table is not PREDICTIONS:
                connection.execute(sa.delete(table).where(table.c.prediction_id.in_(own)))
        connection.execute(sa.delete(PREDICTIONS).where(inside))
        # Before the commit: killed here, the rows are still there and go next time; after it, pictures would stay.
        unneeded = sorted(set(rows["image_hash"]) - _needed_pictures(connection, sorted(set(rows["image_hash"]))))
        return len(rows), [log.pictures.remove_unless_young(name) for name in unneeded]


def aggregates(rows: pd.DataFrame, from_seq: int, now: float) -> list[dict[str, Any]]:
    """What stays of a window: a row of AGGREGATES for each site and version in it."""
    made = []
    for _, own in rows.groupby(["site", "model_version"]):
        labelled = own[own[LABEL_COLUMN].notna()]
        made.append(
            {
                "from_seq": from_seq,
                "site": str(own["site"].iloc[0]),
                "model_version": int(own["model_version"].iloc[0]),
                "rows": len(own),
                "labelled": len(labelled),
                "correct": int((labelled["prediction"] == labelled[LABEL_COLUMN]).sum()),
                "started_at": float(own["at"].min()),
                "ended_at": float(own["at"].max()),
                "predictions": {str(name): int(n) for name, n in own["prediction"].value_counts().sort_index().items()},
                "means": {name: float(own[name].mean()) for name in ("confidence", *QUALITY_COLUMNS)},
                "removed_at": now,
            }
        )
    return made


def _needed_pictures(connection: sa.Connection, names: list[str]) -> set[str]:
    """Those that a row or a case still speaks of."""
    needed: set[str] = set()
    columns = [
        table.c[name] for table in METADATA.sorted_tables for name in ("image_hash", "case_id") if name in table.c
    ]
    for start in range(0, len(names), _CHUNK):
        for column in columns:
            asked = sa.select(column).where(column.in_(names[start : start + _CHUNK])).distinct()
            needed.update(connection.execute(asked).scalars())
    return needed
