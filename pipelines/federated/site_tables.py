"""The database of a site, `site.db`, and its tables: what rows show, what was paid for, the queue of rows to label.

Votes are only ever added: an undo is a vote's row too, and names the vote that it takes back. What an item's votes
come to (`label`) is kept beside it, and so are the pictures of its rows, so that the desk reads no snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, Float, ForeignKey, Integer, LargeBinary, MetaData, String, Table, UniqueConstraint

METADATA = MetaData()

ARCHIVE = Table(
    "archive",  # what a row really shows, where the site knows it; only annotators and evaluation ask
    METADATA,
    Column("row_id", String(32), primary_key=True),
    Column("label", Integer, nullable=False),
)
ANNOTATIONS = Table(
    "annotations",  # every label ever paid for; a row is paid for once
    METADATA,
    Column("row_id", String(32), primary_key=True),
    Column("label", Integer, nullable=False),
    Column("annotator", String(64), nullable=False),
)

DOUBTS = Table(
    "doubts",  # labels that are probably wrong, by whoever looked last
    METADATA,
    Column("row_id", String(32), primary_key=True),
    Column("by", String(32), primary_key=True),
    Column("label", Integer, nullable=False),
    Column("suggestion", Integer, nullable=False),
    Column("support", Float, nullable=False),
)

UNREADABLE = -1
"""What a vote says, and an item comes to, where nobody can tell what the row shows."""

ITEMS = Table(
    "queue_items",
    METADATA,
    Column("item", Integer, primary_key=True, autoincrement=True),
    Column("version", String(16), nullable=False),  # of the queue: a hash of what was asked for together
    Column("row_id", String(32), nullable=False, index=True),
    Column("cluster", Integer, nullable=False),
    Column("reason", String(64), nullable=False),  # why this row: the strategy that chose it
    Column("wants", Integer, nullable=False),  # people whose labels must agree: 1 or 2
    Column("at", Float, nullable=False),  # seconds since the epoch, as everywhere here
    Column("label", Integer),  # what its votes come to; NULL: open
    Column("settled_at", Float),
    Column("withdrawn_at", Float),  # nobody wants it any more
    Column("before", Integer),  # the row's label when a second opinion was asked for, and whose it was
    Column("before_by", String(64)),
    UniqueConstraint("version", "row_id"),
    sqlite_autoincrement=True,
)
VOTES = Table(
    "queue_votes",
    METADATA,
    Column("vote", Integer, primary_key=True, autoincrement=True),
    Column("item", ForeignKey(ITEMS.c.item), nullable=False, index=True),
    Column("annotator", String(64), nullable=False),
    Column("action", String(32), nullable=False),  # votes of one key press, taken back together
    Column("choice", Integer),  # a class index or UNREADABLE; NULL in an undo
    Column("undoes", ForeignKey("queue_votes.vote"), index=True),
    Column("at", Float, nullable=False),
    sqlite_autoincrement=True,
)
LEASES = Table(
    "queue_leases",  # who has an item on the table right now; the only rows here that are ever overwritten or removed
    METADATA,
    Column("item", ForeignKey(ITEMS.c.item), primary_key=True),
    Column("annotator", String(64), primary_key=True),
    Column("until", Float, nullable=False),
)
NEIGHBOURS = Table(
    "queue_neighbours",  # rows near the middle of a cluster, shown beside those that are to be labelled
    METADATA,
    Column("version", String(16), primary_key=True),
    Column("cluster", Integer, primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("row_id", String(32), nullable=False),
)
PICTURES = Table(
    "queue_pictures",
    METADATA,
    Column("row_id", String(32), primary_key=True),
    Column("png", LargeBinary, nullable=False),
)
TOKENS = Table(
    "desk_tokens",
    METADATA,
    Column("sha256", String(64), primary_key=True),
    Column("annotator", String(64), nullable=False),
    Column("made_at", Float, nullable=False),
    Column("revoked_at", Float),
)


def open_database(root: Path) -> sa.Engine:
    """The database of the site whose store lies in that folder; tables are made where they are missing."""
    root.mkdir(parents=True, exist_ok=True)
    database = sa.create_engine(
        f"sqlite:///{root / 'site.db'}",
        poolclass=sa.pool.NullPool,
        # SQLite's own transactions, begun by `writing`: pysqlite would begin one only after the first look.
        isolation_level="AUTOCOMMIT",
        connect_args={"timeout": 30.0},
    )

    @sa.event.listens_for(database, "connect")
    def _pragmas(connection: Any, _: Any) -> None:
        # Whoever reads waits for nobody. Votes survive a kill of every process; only power loss may take the last.
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
            connection.execute(f"PRAGMA {pragma}")

    # In one transaction, behind the lock: two processes that make the same table at once trip over each other.
    if not set(METADATA.tables) <= set(sa.inspect(database).get_table_names()):
        with writing(database) as connection:
            METADATA.create_all(connection)
    return database


@contextmanager
def writing(database: sa.Engine) -> Iterator[sa.Connection]:
    """A connection that is the only writer until the block ends: what it read stays true until it has written."""
    with database.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")


def among(column: sa.ColumnElement[Any], values: Iterable[Any]) -> sa.ColumnElement[bool]:
    """`column IN (values)` for any number of them: SQLite takes some ten thousand parameters, and one JSON list."""
    import json

    listed = sa.func.json_each(json.dumps(list(values))).table_valued("value")
    return column.in_(sa.select(listed.c.value))
