"""The log database: one SQLAlchemy schema for what was predicted, judged, decided, promoted and expected by customers.

Rows are appended; only the state of a decision is ever updated, and old predictions go when retention says so.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)
from sqlalchemy.dialects import postgresql, sqlite

from monitoring.engines import engine_for, prepare

METADATA = MetaData()
_Long = BigInteger().with_variant(Integer(), "sqlite")  # SQLite numbers rows by itself only under the name INTEGER

PREDICTIONS = Table(
    "predictions",
    METADATA,
    Column("seq", _Long, primary_key=True, autoincrement=True),
    Column("prediction_id", String(36), nullable=False, unique=True),
    Column("request_id", String(64)),  # the client's own name of its request, if it gave one
    Column("site", String(64), nullable=False),
    Column("at", Float, nullable=False),  # event time, seconds since the epoch
    Column("model_version", Integer, nullable=False),
    Column("image_hash", String(32), nullable=False),  # the PNG lies in the image store under this name
    Column("prediction", Integer, nullable=False),  # class index
    Column("confidence", Float, nullable=False),  # probability of the predicted class
    Column("probabilities", JSON, nullable=False),  # one per class
    Column("brightness", Float, nullable=False),
    Column("contrast", Float, nullable=False),
    Column("sharpness", Float, nullable=False),
    Column("saturation", Float, nullable=False),
    Column("noise", Float, nullable=False),
    Column("logged_at", Float),  # when the row came into the log, by the writer's clock; None: `at` stands for it
    Column("picture_bytes", Integer),  # of the PNG
    Column("abstained", String(32)),  # why the model left it to a person; None: it answered
    sqlite_autoincrement=True,
)

LABELS = Table(
    "labels",  # delayed ground truth; append-only
    METADATA,
    Column("prediction_id", String(36), primary_key=True),
    Column("source", String(64), primary_key=True),
    Column("label", Integer, nullable=False),
    Column("at", Float, nullable=False),
)

WINDOWS = Table(
    "windows",  # what each monitor run looked at, and what it saw; a window is reported once
    METADATA,
    Column("window", Integer, primary_key=True, autoincrement=True),
    Column("from_seq", _Long, nullable=False, unique=True),
    Column("to_seq", _Long, nullable=False),  # half-open: from_seq <= seq < to_seq
    Column("rows", Integer, nullable=False),
    Column("started_at", Float, nullable=False),  # event time of the first and the last row
    Column("ended_at", Float, nullable=False),
    Column("model_version", Integer, nullable=False),
    Column("odd", Integer, nullable=False),  # 0 or 1
    Column("evidence", JSON, nullable=False),
    sqlite_autoincrement=True,
)

AGGREGATES = Table(
    "aggregates",  # what stays of a window whose rows retention has taken: one row for each site and version in it
    METADATA,
    Column("from_seq", _Long, primary_key=True),  # the window's
    Column("site", String(64), primary_key=True),
    Column("model_version", Integer, primary_key=True),
    Column("rows", Integer, nullable=False),
    Column("labelled", Integer, nullable=False),
    Column("correct", Integer, nullable=False),  # of the labelled
    Column("started_at", Float, nullable=False),  # event time of the first and the last row
    Column("ended_at", Float, nullable=False),
    Column("predictions", JSON, nullable=False),  # rows of each class index
    Column("means", JSON, nullable=False),  # of the confidence and of the quality columns
    Column("removed_at", Float, nullable=False),
)

DECISIONS = Table(
    "decisions",  # what an alarm calls for: the row first, the event second
    METADATA,
    Column("decision", Integer, primary_key=True, autoincrement=True),
    Column(
        "cause", String(64), nullable=False
    ),  # drift | broken camera | silence | label shift | doubt | schedule | manual
    Column("evidence", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("state", String(16), nullable=False),  # waiting | emitted | running | done | failed; paged | asked | closed
    Column("attempts", Integer, nullable=False, default=0),
    Column("flow_run_id", String(64)),
    Column("updated_at", Float, nullable=False),
    Column("outcome", String(400)),
    sqlite_autoincrement=True,
)

NOTIFICATIONS = Table(
    "notifications",  # which channel has been told of which decision; append-only
    METADATA,
    Column("decision", Integer, primary_key=True),
    Column("channel", String(128), primary_key=True),
    Column("at", Float, nullable=False),
)

PROMOTIONS = Table(
    "promotions",  # who was champion when: the registry keeps no history of its aliases
    METADATA,
    Column("promotion", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("version", Integer),  # None: no champion from now on
    Column("previous", Integer),
    Column("reason", String(400), nullable=False),
    sqlite_autoincrement=True,
)

MOVES = Table(
    "release_moves",  # shadow, canary, champion and what ends them; a version's newest move says where it stands
    METADATA,
    Column("move", Integer, primary_key=True, autoincrement=True),
    Column("version", Integer, nullable=False),
    Column("number", Integer, nullable=False),  # of the version's moves, from 1
    Column("from_step", String(16)),
    Column("to_step", String(16), nullable=False),
    Column("from_seq", _Long, nullable=False),  # the predictions behind it in the log: evidence counts from here
    Column("at", Float, nullable=False),
    Column("reason", String(400), nullable=False),
    Column("figures", JSON, nullable=False),
    UniqueConstraint("version", "number"),  # of two who write the next move at once, one is passed over
    sqlite_autoincrement=True,
)

SHADOW_PREDICTIONS = Table(
    "shadow_predictions",  # what a version that did not answer a request would have answered; append-only
    METADATA,
    Column("prediction_id", String(36), primary_key=True),
    Column("model_version", Integer, primary_key=True),
    Column("prediction", Integer),  # None: the version failed on this row
    Column("probabilities", JSON, nullable=False),
    Column("at", Float, nullable=False),
    Column("slower", Float),  # its time over the other version's on the same batch, where both were taken
)

CASES = Table(
    "cases",  # what customers expect: a correction and a withdrawal are further versions, nothing is updated
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("case_id", String(32), nullable=False),  # the picture's content hash: its name in the image store
    Column("version", Integer, nullable=False),  # from 1; the newest one counts
    Column("expected", String(200), nullable=False),  # the class by name: an index would mean another class one day
    Column("withdrawn", Boolean, nullable=False),
    Column("site", String(64)),
    Column("submitter", String(64), nullable=False),
    Column("note", String(400), nullable=False),  # of a withdrawal: its reason
    Column("at", Float, nullable=False),
    UniqueConstraint("case_id", "version"),  # of two who write the next version at once, one sees the other's
    sqlite_autoincrement=True,
)

CASE_FINDINGS = Table(
    "case_findings",  # what models answered to cases, and why they erred; append-only
    METADATA,
    Column("finding", Integer, primary_key=True, autoincrement=True),
    Column("case_id", String(32), nullable=False),
    Column("case_version", Integer, nullable=False),
    Column("model_version", Integer, nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("cause", String(64)),  # None: nobody has looked for it
    Column("at", Float, nullable=False),
    sqlite_autoincrement=True,
)

SERVICE_HEALTH = Table(
    "service_health",  # how each replica of the service fared, some seconds a row; see monitoring/health.py
    METADATA,
    Column("replica", String(64), primary_key=True),  # one process of the service, from its start to its end
    Column("tick", Integer, primary_key=True),
    Column("version", Integer, primary_key=True),  # of the model; 0: none served
    Column("at", Float, nullable=False),  # when the tick ended, by the replica's clock
    Column("answered", Integer, nullable=False),  # requests
    Column("errors", Integer, nullable=False),
    Column("unavailable", Integer, nullable=False),
    Column("refused", Integer, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("abstained", Integer, nullable=False),  # rows
    Column("latency", JSON, nullable=False),  # answered requests by bucket of health.LATENCY_EDGES_S
)

SILENCES = Table(
    "silences",  # a site that sent nothing for far longer than it ever paused
    METADATA,
    Column("site", String(64), primary_key=True),
    Column("since", Float, primary_key=True),  # event time of its last row
    Column("noticed_at", Float, nullable=False),
    Column("ended_at", Float),  # when rows came again, or the site was no longer expected; None: it is still silent
    Column("sentence", String(400), nullable=False),
)

HISTOGRAM_WINDOWS = Table(
    "histogram_windows",  # what the sites' histograms of their new rows showed, where no row may be seen
    METADATA,
    Column("window", Integer, primary_key=True, autoincrement=True),
    Column("model_version", Integer, nullable=False),
    Column("turn", Integer, nullable=False),  # from 1 for every version; a row is counted in one turn
    Column("at", Float, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("odd", Integer, nullable=False),  # 0 or 1
    Column("evidence", JSON, nullable=False),  # as in WINDOWS
    UniqueConstraint("model_version", "turn"),
    sqlite_autoincrement=True,
)

Index("service_health_at", SERVICE_HEALTH.c.at)
Index("case_findings_model", CASE_FINDINGS.c.model_version)
Index("predictions_site_seq", PREDICTIONS.c.site, PREDICTIONS.c.seq)
Index("predictions_request", PREDICTIONS.c.request_id)
Index("predictions_image", PREDICTIONS.c.image_hash)  # whether a picture is still needed
__all__ = [
    "AGGREGATES",
    "CASES",
    "CASE_FINDINGS",
    "DECISIONS",
    "HISTOGRAM_WINDOWS",
    "LABELS",
    "METADATA",
    "MOVES",
    "NOTIFICATIONS",
    "PREDICTIONS",
    "PROMOTIONS",
    "SERVICE_HEALTH",
    "SHADOW_PREDICTIONS",
    "SILENCES",
    "WINDOWS",
    "connect",
    "insert_new",
]


def connect(url: str) -> sa.Engine:
    """An engine for the log database at an SQLAlchemy URL; tables are created where they are missing.

    Raises:
        BadInput: the URL cannot be read, or names another kind of database.
        Missing: the database does not answer.
    """
    engine = engine_for(url)
    prepare(engine, METADATA)
    return engine


def insert_new(engine: sa.Engine, table: Table) -> sa.Insert:
    """An insert that passes over rows whose key is taken. Ask with RETURNING which were new, not by the rowcount."""
    if engine.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()
