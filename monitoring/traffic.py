"""The traffic log: what was predicted, on which picture, and what it later turned out to be.

In go predictions (rows in the log database, pictures in a content-addressed folder) and delayed labels; out come
windows of them as data frames. Rows are appended and never changed, so a window costs what its own size costs.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import pandas as pd
import sqlalchemy as sa

from models.errors import BadInput
from models.quality import QUALITY_COLUMNS
from monitoring import pictures
from monitoring.database import LABELS, PREDICTIONS, connect, insert_new

COLUMNS = [column.name for column in PREDICTIONS.columns]
LABEL_COLUMN = "label"
LOGGED_AT = sa.func.coalesce(PREDICTIONS.c.logged_at, PREDICTIONS.c.at).label("logged_at")
"""When a row came into the log, in seconds since the epoch: it has the order of `seq` unless a clock was set."""

_CHUNK = 500  # bound parameters of one statement; SQLite's older limit is 999
# Holders take turns, so that seq has the order of the commits and a reader's cursor never passes a row by.
_WRITERS_TURN = sa.text("SELECT pg_advisory_xact_lock(7240311)")


class UnknownPrediction(BadInput):
    """A label for a prediction that the log does not hold."""


class Conflict(BadInput):
    """A source says of a prediction something else than it said before."""


@dataclass(frozen=True)
class Prediction:
    """One row of the log. png: the picture that was predicted on; quality: the values of QUALITY_COLUMNS.

    logged_at: when it comes into the log; None for now.
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

    def row(self, now: float) -> dict[str, object]:
        own = {"seq", "logged_at", "picture_bytes", *QUALITY_COLUMNS}
        values: dict[str, object] = {name: getattr(self, name) for name in COLUMNS if name not in own}
        values |= {"logged_at": now if self.logged_at is None else self.logged_at, "picture_bytes": len(self.png)}
        return values | dict(zip(QUALITY_COLUMNS, self.quality, strict=True))


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

    @classmethod
    def open(cls, database_url: str, images: Path) -> Self:
        return cls(connect(database_url), images)

    def record(self, predictions: Sequence[Prediction]) -> None:
        """Write all of them or none. Recording the same predictions again changes nothing."""
        for prediction in predictions:
            self.keep_image(prediction.image_hash, prediction.png)
        if not predictions:
            return
        with self.engine.begin() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(_WRITERS_TURN)
            now = time.time()
            connection.execute(insert_new(self.engine, PREDICTIONS), [each.row(now) for each in predictions])

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
        """The PNG of that name; see `pictures.read`."""
        return pictures.read(self.images, image_hash)

    def keep_image(self, image_hash: str, png: bytes) -> None:
        """Put a PNG into the image store under its content's name; see `pictures.keep`."""
        pictures.keep(self.images, image_hash, png)

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
