"""Records that could not go where they belong, on the local disk until they can.

A segment is a file of lines, each with its checksum, that one process appends to; a call of `append` is one fsync,
however many records it brings. Whoever drains takes the segments that nobody holds, oldest first: sealed ones, and
those of processes that have died. A segment goes when its last record has been taken, so a record may be offered
again after a kill, and never is forgotten. Small segments are taken together.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import uuid
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SEGMENT_BYTES = 16 * 2**20
BATCH, BATCH_BYTES = 250, 2**20
"""Records that are taken at once; the last one may go beyond the bytes."""
_SUFFIX = ".spool"

logger = logging.getLogger("fedloop.log")
Record = dict[str, Any]


class Spool:
    """One process' access to a folder of segments. Safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._file: int | None = None  # the segment that is appended to, with an exclusive lock on it
        self._path = folder
        self._size = 0

    def append(self, records: Sequence[Record]) -> str:
        """Keep them all, durably, or none; the name of the segment that has them.

        Raises:
            OSError: the disk does not take them.
        """
        data = b"".join(map(_line, records))
        with self._lock:
            file = self._file if self._file is not None else self._begin()
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
                os.fsync(file)
            except OSError:
                # What was not promised must not be found. Of a file whose fsync failed, nobody knows more.
                try:
                    os.ftruncate(file, self._size)
                finally:
                    self._seal()
                raise
            self._size += len(data)
            name = self._path.name
            if self._size >= SEGMENT_BYTES:
                self._seal()
            return name

    def seal(self) -> None:
        """Leave the current segment to whoever drains; the next record begins another."""
        with self._lock:
            self._seal()

    def segments(self) -> list[Path]:
        """Oldest first; those that somebody writes or drains, too."""
        return sorted(self.folder.glob(f"*{_SUFFIX}"))

    def size_bytes(self) -> int:
        total = 0
        for path in self.segments():
            try:
                total += path.stat().st_size
            except FileNotFoundError:  # drained meanwhile
                continue
        return total

    def drain(self, take: Callable[[list[Record]], None]) -> None:
        """Give every record in reach to `take`, in batches and in order.

        What `take` raises ends the draining; segments of which it has not taken all stay, to be offered again whole.
        """
        batch: list[Record] = []
        size = 0
        held: dict[Path, int] = {}  # open files of the segments whose records are not all taken
        ended: dict[Path, int] = {}  # those of them that are read to their end, with how many lines are damaged

        def deliver() -> None:
            nonlocal batch, size
            if batch:
                take(batch)
            batch, size = [], 0
            while ended:
                path, damaged = ended.popitem()
                _remove(path, damaged)
                os.close(held.pop(path))

        try:
            for path in self.segments():
                if (file := _hold(path)) is None:
                    continue
                held[path] = file
                damaged = torn = 0
                with path.open("rb") as lines:
                    for line in lines:
                        damaged, torn = damaged + torn, 0
                        if (record := _record(line)) is None:
                            torn = 1  # at the end, where it was never promised
                            continue
                        batch.append(record)
                        size += len(line)
                        if len(batch) == BATCH or size >= BATCH_BYTES:
                            deliver()
                ended[path] = damaged
                if not batch or len(ended) == BATCH:
                    deliver()
            deliver()
        finally:
            for file in held.values():
                os.close(file)

    def set_aside(self, record: Record) -> None:
        """Keep a record that can never go where it belongs, for a person to look at."""
        with (self.folder / "refused.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def _begin(self) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            # Numbers, not times: a clock may be set back.
            last = max((int(path.name[:12]) for path in self.segments()), default=0)
            self._path = self.folder / f"{last + 1:012d}-{uuid.uuid4().hex[:8]}{_SUFFIX}"
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink:
                break
            os.close(file)  # somebody drained it before it was ours
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # or the name of the file may be lost with the power
        finally:
            os.close(folder)
        self._file, self._size = file, 0
        return file

    def _seal(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            if not self._size:
                self._path.unlink(missing_ok=True)
            os.close(file)


def _line(record: Record) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _record(line: bytes) -> Record | None:
    """What `_line` made a line of; None where it is torn or has rotted."""
    checksum, _, text = line[:-1].partition(b" ")
    if line[-1:] != b"\n" or checksum != b"%08x" % zlib.crc32(text):
        return None
    record: Record = json.loads(text)
    return record


def _hold(path: Path) -> int | None:
    """The segment's file with an exclusive lock on it; None where somebody else has it, or it is gone."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_nlink:
            return file
    except OSError:
        pass
    os.close(file)
    return None


def _remove(path: Path, damaged: int) -> None:
    if damaged:
        logger.error("%d lines of %s are damaged; it is kept as .damaged", damaged, path)
        path.rename(path.with_suffix(".damaged"))
    else:
        path.unlink()
