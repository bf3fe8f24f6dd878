"""The image store of the log: PNGs by the hash of their content, in one SQLite file of the image folder.

A file for every picture would cost most of what a prediction costs: making one takes a hundred times as long as a row
in a transaction that many pictures share. A picture is in the store whole or not at all, and is committed before the
row that speaks of it. Naming it again makes it young again, so that `remove_unless_young` never takes one away from a
row that is just about to be written.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from models.errors import BadInput, Missing

FILE = "pictures.db"
YOUNG_S = 3600.0
"""A row is in the log, or refused, long before its picture is this old."""

BUSY_S = 5.0
"""How long one writer waits for another."""

_HASH = re.compile(r"[0-9a-f]{32}")
_CHUNK = 500
_KEEP = """INSERT INTO pictures (name, kept_at, png) VALUES {}
           ON CONFLICT (name) DO UPDATE SET kept_at = excluded.kept_at"""
_SETUP = """PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 4000;
            CREATE TABLE IF NOT EXISTS pictures (name BLOB PRIMARY KEY, kept_at REAL NOT NULL, png BLOB NOT NULL)"""


class Pictures:
    """The store in one folder. Safe to share between threads, and the file between processes of one machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._turn = threading.Lock()
        self._open: tuple[sqlite3.Connection, int] | None = None  # the connection, and its file's inode

    def keep(self, pictures: Mapping[str, bytes]) -> None:
        """Store PNGs by their content's name, all of them or none; those that are there become young.

        Raises:
            BadInput: a name is none.
            OSError: the store cannot be written.
        """
        now = time.time()
        rows = [(_key(name), now, png) for name, png in pictures.items()]
        with self._transaction() as connection:
            connection.execute("BEGIN IMMEDIATE")
            for start in range(0, len(rows), _CHUNK):
                # One statement: sqlite3 hands the interpreter's lock over with every one.
                chunk = rows[start : start + _CHUNK]
                connection.execute(_KEEP.format(", ".join(["(?, ?, ?)"] * len(chunk))), list(chain(*chunk)))
            connection.execute("COMMIT")

    def read(self, image_hash: str) -> bytes:
        """The PNG of that name.

        Raises:
            BadInput: it is no name.
            Missing: the store does not hold it.
        """
        key = _key(image_hash)
        if (self.folder / FILE).exists():
            with self._transaction() as connection:
                found = connection.execute("SELECT png FROM pictures WHERE name = ?", (key,)).fetchone()
            if found:
                return bytes(found[0])
        try:
            return _old_file(self.folder, image_hash).read_bytes()
        except FileNotFoundError as error:
            raise Missing(f"the image {image_hash} is not in the image store (looked in {self.folder})") from error

    def remove_unless_young(self, image_hash: str, young_s: float = YOUNG_S) -> int:
        """Take a picture away that no row needs; the bytes that this frees, 0 where somebody has just named it."""
        with self._transaction() as connection:
            statement = "DELETE FROM pictures WHERE name = ? AND kept_at <= ? RETURNING length(png)"
            found = connection.execute(statement, (_key(image_hash), time.time() - young_s)).fetchall()
        _old_file(self.folder, image_hash).unlink(missing_ok=True)
        return int(found[0][0]) if found else 0

    def close(self) -> None:
        with self._turn:
            if self._open:
                self._open[0].close()
                self._open = None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._turn:
            try:
                connection = self._connection()
                yield connection
            except sqlite3.Error as error:
                if self._open and self._open[0].in_transaction:
                    self._open[0].execute("ROLLBACK")
                raise OSError(f"the image store {self.folder / FILE} cannot be used ({error})") from error

    def _connection(self) -> sqlite3.Connection:
        path = self.folder / FILE
        # A file that somebody moved away would take pictures that nobody finds again.
        if self._open and path.exists() and os.stat(path).st_ino == self._open[1]:  # noqa: PTH116
            return self._open[0]
        if self._open:
            self._open[0].close()
            self._open = None
        self.folder.mkdir(parents=True, exist_ok=True)
        made = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        made.executescript(_SETUP)
        self._open = (made, path.stat().st_ino)
        return made


def _key(image_hash: str) -> bytes:
    if not _HASH.fullmatch(image_hash):
        raise BadInput(f"{image_hash!r} is no image name: 32 hexadecimal digits are")
    return bytes.fromhex(image_hash)


def _old_file(folder: Path, image_hash: str) -> Path:
    """Where earlier releases kept the picture: a file of its own."""
    return folder / image_hash[:2] / f"{image_hash}.png"
