"""Where the log database is: an engine for its URL, its tables made or brought up to date, sentences where it is not.

SQLite in WAL mode embedded (one writer at a time, readers never wait), PostgreSQL where several processes share it.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from models.errors import BadInput, Missing

CONNECT_S = 5
"""How long a PostgreSQL server may take to let somebody in, and how long sent bytes may go unacknowledged."""

_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
_MAKERS_TURN = sa.text("SELECT pg_advisory_xact_lock(7240310)")


def engine_for(database_url: str) -> sa.Engine:
    """An engine at an SQLAlchemy URL; nothing is connected to yet.

    Raises:
        BadInput: the URL cannot be read, or names another kind of database.
    """
    example = "for example postgresql+psycopg://user:password@host/database (FEDLOOP_LOG_URL)"
    try:
        url = sa.make_url(database_url)
    except sa.exc.ArgumentError as error:
        raise BadInput(f"the log's URL {database_url!r} cannot be read: {example}") from error
    kind, _, driver = url.drivername.partition("+")
    if kind not in _DRIVERS or driver not in ("", "psycopg", "pysqlite"):
        raise BadInput(f"the log is kept in SQLite or PostgreSQL, not in {url.drivername!r}: {example}")
    url = url.set(drivername=_DRIVERS[kind])
    if kind == "sqlite":
        if url.database and url.database != ":memory:":
            _make_folder(Path(url.database).parent)
        engine = sa.create_engine(url, json_serializer=_strict_json)
        sa.event.listen(engine, "connect", _sqlite_pragmas)
        return engine
    return sa.create_engine(
        url,
        json_serializer=_strict_json,
        pool_pre_ping=True,  # a restart of the server costs a question, not a request
        connect_args={"connect_timeout": CONNECT_S, "tcp_user_timeout": CONNECT_S * 1000, "keepalives_idle": CONNECT_S},
    )


def in_schema(database_url: str, name: str) -> str:
    """The URL of a PostgreSQL database narrowed to a schema, so that several logs live in one; others stay as they are.

    A URL that has `options` of its own is taken to know better.
    """
    if not database_url.startswith(("postgresql:", "postgresql+", "postgres:")) or "//" not in database_url:
        return database_url
    url = sa.make_url(database_url)
    if "options" in url.query:
        return database_url
    schema = re.sub(r"\W", "_", name).lower()
    return url.update_query_dict({"options": f"-csearch_path={schema}"}).render_as_string(hide_password=False)


def set_aside(database_url: str) -> None:
    """Have the next log at a PostgreSQL URL begin empty; the one before keeps its rows in the schema `…_previous`.

    Raises:
        Missing: the database does not answer.
    """
    engine = engine_for(database_url)
    try:
        with engine.begin() as connection:
            schema = connection.exec_driver_sql("SELECT current_schema()").scalar()
            if schema is not None:
                connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {schema}_previous CASCADE")
                connection.exec_driver_sql(f"ALTER SCHEMA {schema} RENAME TO {schema}_previous")
    except sa.exc.DBAPIError as error:
        raise _silent(engine, error) from error
    finally:
        engine.dispose()


def prepare(engine: sa.Engine, metadata: sa.MetaData) -> None:
    """Make the tables that are missing; tables of an older version get the columns and indexes that came since.

    Raises:
        Missing: the database does not answer.
    """
    try:
        with engine.connect() as connection:
            if not _lacking(connection, metadata):  # so that who only reads waits for no writer
                return
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(_MAKERS_TURN)
                if connection.exec_driver_sql("SELECT current_schema()").scalar() is None:
                    schema = connection.exec_driver_sql("SHOW search_path").scalar_one()
                    connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
            else:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            for step in _lacking(connection, metadata):
                connection.execute(step)
    except sa.exc.DBAPIError as error:
        raise _silent(engine, error) from error


def _silent(engine: sa.Engine, error: Exception) -> Missing:
    return Missing(
        f"the log database at {engine.url.render_as_string()} does not answer ({reason(error)}); "
        "is it running, and is FEDLOOP_LOG_URL right?"
    )


def _lacking(connection: sa.Connection, metadata: sa.MetaData) -> list[sa.schema.ExecutableDDLElement]:
    """What has to be done until the database has all tables, columns and indexes."""
    there, steps = sa.inspect(connection), list[sa.schema.ExecutableDDLElement]()
    tables = set(there.get_table_names())
    for table in metadata.sorted_tables:
        new = table.name not in tables
        known = set() if new else {column["name"] for column in there.get_columns(table.name)}
        indexes = set() if new else {index["name"] for index in there.get_indexes(table.name)}
        if new:
            steps.append(sa.schema.CreateTable(table))
        for column in [] if new else [column for column in table.columns if column.name not in known]:
            words = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
            steps.append(sa.DDL(f"ALTER TABLE {table.name} ADD COLUMN {words}"))  # type: ignore[no-untyped-call]
        steps += [sa.schema.CreateIndex(index) for index in table.indexes if index.name not in indexes]
    return steps


def reason(error: BaseException) -> str:
    """What a database or the disk says, in a line."""
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split())[:200]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Missing(f"the log's folder {folder} cannot be made ({error.strerror})") from error


def _sqlite_pragmas(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    # WAL with NORMAL survives kill -9 of every process; only power loss may lose the last commits.
    # The patience first: two processes that make the same new file wait for each other.
    for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=NORMAL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _strict_json(value: Any) -> str:
    """JSON without NaN and infinities, which PostgreSQL refuses: null stands for them."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(value), allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
