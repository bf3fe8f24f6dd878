"""A log database of its own for a test, in SQLite or in PostgreSQL, and gone afterwards."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from monitoring.traffic import TrafficLog

_NUMBER = itertools.count()


@dataclass(frozen=True)
class Databases:
    """Where new log databases come from: files, or schemas of a running PostgreSQL."""

    server_url: str | None = None

    @property
    def kind(self) -> str:
        return "postgresql" if self.server_url else "sqlite"

    @contextmanager
    def url(self) -> Iterator[str]:
        """An empty database."""
        if self.server_url is None:
            with tempfile.TemporaryDirectory() as folder:
                yield f"sqlite:///{folder}/deep/log.db"
            return
        name = f"test_{next(_NUMBER)}"
        server = sa.create_engine(self.server_url, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
        with server.connect() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
        yield f"{self.server_url}&options={quote(f'-csearch_path={name}')}"
        with server.connect() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")

    @contextmanager
    def log(self) -> Iterator[TrafficLog]:
        """A log with an empty database and an empty image store."""
        with self.url() as url, tempfile.TemporaryDirectory() as folder:
            log = TrafficLog.open(url, Path(folder) / "images")
            yield log
            log.close()


fresh_log = Databases().log
