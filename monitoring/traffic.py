"""The traffic log: what was predicted, on which picture, and what it later turned out to be.

In go predictions (rows in the log database, pictures in a store by their content) and delayed labels; out come
windows of them as data frames. Rows are appended and never changed, so a window costs what its own size costs.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import orjson
import pandas as pd
import sqlalchemy as sa

from models.errors import BadInput
from models.quality import QUALITY_COLUMNS
from monitoring.database import LABELS, PREDICTIONS, connect, insert_new
from monitoring.pictures import Pictures

COLUMNS = [column.name for column in PREDICTIONS.columns]
LABEL_COLUMN = "label"
LOGGED_AT = sa.func.coalesce(PREDICTIONS.c.logged_at, PREDICTIONS.c.at).label("logged_at")
"""When a row came into the log, in seconds since the epoch: it has the order of `seq` unless a clock was set."""

_CHUNK = 500  # bound parameters of one statement; SQLite's older limit is 999
_WRITTEN = [name for name in COLUMNS if name != "seq"]
# Holders take turns, so that seq has the order of the commits and a reader's cursor never passes a row by.
_WRITERS_TURN = sa.text("SELECT pg_advisory_xact_lock(7240311)")


@lru_cache(maxsize=512)
def _insert(dialect: str, rows: int) -> str:
    """One statement for many rows: SQLAlchemy's own takes longer than the database, and hides how many were new."""
    row = "(" + ", ".join(["?" if dialect == "sqlite" else "%s"] * len(_WRITTEN)) + ")"
    return f"INSERT INTO predictions ({', '.join(_WRITTEN)}) VALUES {', '.join([row] * rows)} ON CONFLICT DO NOTHING"


class UnknownPrediction(BadInput):
    """A label for a prediction that the log does not hold."""


class Conflict(BadInput):
    """A source says of a prediction something else than it said before."""


@dataclass(frozen=True)
class Prediction:
    """One row of the log. png: the picture that was predicted on; quality: the values of QUALITY_COLUMNS.

    logged_at: when it comes into the log; None for now.
    abstained: why the answer was left to a person; None where it was not.
    """

    prediction_id: str
    request_id: str | None
    site: str
    at: float
    model_version: int
    png: bytes
    image_hash: str
    prediction: int
    confidence: float
    probabilities: list[float]
    quality: Sequence[float]
    logged_at: float | None = None
    abstained: str | None = None

    def values(self, now: float) -> tuple[object, ...]:
        """What is written, in the order of _WRITTEN."""
        return (
            self.prediction_id, self.request_id, self.site, self.at, self.model_version, self.image_hash,
            self.prediction, self.confidence, orjson.dumps(self.probabilities).decode(), *self.quality,
            now if self.logged_at is None else self.logged_at, len(self.png), self.abstained,
        )  # fmt: skip


@dataclass(frozen=True)
class Label:
    """Delayed ground truth: `source` says at time `at` that the prediction should have been class `label`."""

    prediction_id: str
    label: int
    source: str
    at: float


class TrafficLog:
    """The log over one database engine and one image folder. Safe to share between threads."""

    def __init__(self, engine: sa.Engine, images: Path) -> None:
        self.engine = engine
        self.images = images
        self.pictures = Pictures(images)

    @classmethod
    def open(cls, database_url: str, images: Path) -> Self:
        return cls(connect(database_url), images)

    def record(self, predictions: Sequence[Prediction]) -> Sequence[Prediction]:
        """Write all of them or none, and give them back as they stand in the log.

        One whose id is taken is not written again: what stands there was answered before, and comes back instead.
        """
        if not predictions:
            return predictions
        self.pictures.keep({each.image_hash: each.png for each in predictions})
        with self.engine.begin() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(_WRITERS_TURN)
            new, now = 0, time.time()
            for start in range(0, len(predictions), _CHUNK):
                chunk = predictions[start : start + _CHUNK]
                values = [value for each in chunk for value in each.values(now)]
                new += connection.exec_driver_sql(_insert(self.engine.dialect.name, len(chunk)), tuple(values)).rowcount
            if new == len(predictions):
                return predictions
            there = PREDICTIONS.c.prediction_id.in_([each.prediction_id for each in predictions])
            stored = {row.prediction_id: row for row in connection.execute(sa.select(PREDICTIONS).where(there))}
        return [_as_stored(each, stored[each.prediction_id]) for each in predictions]

    def label(self, prediction_id: str, label: int, source: str, at: float) -> Literal["stored", "already"]:
        """Write one delayed label; see `label_all`."""
        return self.label_all([Label(prediction_id, label, source, at)])[0]

    def label_all(self, labels: Sequence[Label]) -> list[Literal["stored", "already"]]:
        """Write all of them or none; one that its source has given before is "already" there.

        Raises:
            UnknownPrediction: the log has no such prediction.
            Conflict: the same source has given that prediction another label.
        """
        said: list[Literal["stored", "already"]] = []
        with self.engine.begin() as connection:
            for row, label in enumerate(labels):
                where = f"row {row}: " if len(labels) > 1 else ""
                # The insert first: it takes the turn in which retention cannot take the prediction away.
                put = insert_new(self.engine, LABELS).returning(LABELS.c.prediction_id)
                new = connection.execute(put, vars(label)).first() is not None
                known = sa.select(PREDICTIONS.c.seq).where(PREDICTIONS.c.prediction_id == label.prediction_id)
                if connection.execute(known.with_for_update(key_share=True)).first() is None:
                    raise UnknownPrediction(f"{where}there is no prediction {label.prediction_id!r} in the log")
                said.append("stored" if new else "already")
                before = connection.execute(
                    sa.select(LABELS.c.label).where(
                        LABELS.c.prediction_id == label.prediction_id, LABELS.c.source == label.source
                    )
                ).scalar_one()
                if before != label.label:
                    raise Conflict(
                        f"{where}{label.source!r} has labelled prediction {label.prediction_id!r} {before} before, "
                        f"and {label.label} now; labels never change: send a correction under another source"
                    )
        return said

    def window(self, from_seq: int, rows: int, lateness_s: float, now: float) -> pd.DataFrame:
        """The next predictions from `from_seq` on, `rows` at most, up to the first logged within `lateness_s` of now.

        It ends there, and does not merely leave the young one out: the next window starts at the last seq + 1, and
        between the two no row may be lost. A row from the future, after the clock was set back, is not young.
        """
        seq = PREDICTIONS.c.seq
        head = sa.select(seq, LOGGED_AT).where(seq >= from_seq).order_by(seq).limit(rows)
        with self.engine.connect() as connection:
            found = connection.execute(head).all()
        end = from_seq
        for row in found:
            if now - lateness_s < row.logged_at <= now:
                break
            end = row.seq + 1
        return self.between(from_seq, end)

    def between(self, from_seq: int, to_seq: int, *where: sa.ColumnElement[bool]) -> pd.DataFrame:
        """The predictions with from_seq <= seq < to_seq in that order, with `label`: the last one given, or NA.

        where: further conditions on PREDICTIONS.
        """
        with self.engine.connect() as connection:
            return read(connection, from_seq, to_seq, *where)

    def labelled(self, windows: Sequence[tuple[int, int]]) -> list[int]:
        """How many predictions of each window [from_seq, to_seq) have a label.

        One run over the span of the windows, whose ends are constants: joined with WINDOWS, PostgreSQL reads the log.
        """
        if not windows:
            return []
        seq = PREDICTIONS.c.seq
        inside = (seq >= min(low for low, _ in windows)) & (seq < max(high for _, high in windows))
        said = sa.exists().where(LABELS.c.prediction_id == PREDICTIONS.c.prediction_id)
        with self.engine.connect() as connection:
            found = list(connection.execute(sa.select(seq).where(inside, said).order_by(seq)).scalars())
        return [bisect_left(found, high) - bisect_left(found, low) for low, high in windows]

    def image(self, image_hash: str) -> bytes:
        """The PNG of that name; see `Pictures.read`."""
        return self.pictures.read(image_hash)

    def sites_of(self, prediction_ids: Sequence[str]) -> set[str]:
        """The sites of those of the predictions that are in the log."""
        with self.engine.connect() as connection:
            asked = sa.select(PREDICTIONS.c.site).where(PREDICTIONS.c.prediction_id.in_(prediction_ids)).distinct()
            return set(connection.execute(asked).scalars())

    def count(self) -> int:
        with self.engine.connect() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(PREDICTIONS)).scalar_one())

    def first_seq(self) -> int:
        """The seq of the oldest prediction, 0 where there is none."""
        with self.engine.connect() as connection:
            return int(connection.execute(sa.select(sa.func.min(PREDICTIONS.c.seq))).scalar_one() or 0)

    def last_seq(self) -> int:
        """The seq of the newest prediction, 0 before the first."""
        with self.engine.connect() as connection:
            return int(connection.execute(sa.select(sa.func.max(PREDICTIONS.c.seq))).scalar_one() or 0)

    def missing_requests(self, request_ids: Iterable[str]) -> set[str]:
        """Those of the request ids that the log does not hold."""
        missing = set(request_ids)
        asked = sorted(missing)
        with self.engine.connect() as connection:
            for start in range(0, len(asked), _CHUNK):
                chunk = asked[start : start + _CHUNK]
                there = sa.select(PREDICTIONS.c.request_id).where(PREDICTIONS.c.request_id.in_(chunk))
                missing.difference_update(connection.execute(there).scalars())
        return missing

    def close(self) -> None:
        self.engine.dispose()
        self.pictures.close()


def read(connection: sa.Connection, from_seq: int, to_seq: int, *where: sa.ColumnElement[bool]) -> pd.DataFrame:
    """What `TrafficLog.between` gives, within a transaction of the caller's."""
    seq = PREDICTIONS.c.seq
    inside = sa.and_(seq >= from_seq, seq < to_seq, *where)
    labels = (
        sa.select(LABELS.c.prediction_id, LABELS.c.label)
        .join(PREDICTIONS, PREDICTIONS.c.prediction_id == LABELS.c.prediction_id)
        .where(inside)
        .order_by(LABELS.c.at, LABELS.c.source)
    )
    asked = [LOGGED_AT if column.name == "logged_at" else column for column in PREDICTIONS.columns]
    rows = connection.execute(sa.select(*asked).where(inside).order_by(seq)).all()
    given = {row.prediction_id: row.label for row in connection.execute(labels)}
    frame = pd.DataFrame(rows, columns=COLUMNS)
    for column in PREDICTIONS.columns:
        if isinstance(column.type, sa.Integer | sa.Float):
            whole = isinstance(column.type, sa.Integer) and not column.nullable
            frame[column.name] = frame[column.name].astype("int64" if whole else float)
    frame[LABEL_COLUMN] = pd.array([given.get(key) for key in frame["prediction_id"]], dtype="Int64")
    return frame


def _as_stored(given: Prediction, row: sa.Row[Any]) -> Prediction:
    """The prediction as its row has it; `png` is the given one's, whose hash need not be the row's."""
    names = [each.name for each in fields(given) if each.name not in ("png", "quality")]
    values: dict[str, Any] = {name: getattr(row, name) for name in names}
    stored = replace(given, quality=[getattr(row, name) for name in QUALITY_COLUMNS], **values)
    return given if stored == given else stored
