"""A traffic log of its own for a test, and gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monitoring.traffic import TrafficLog


@contextmanager
def fresh_log() -> Iterator[TrafficLog]:
    with tempfile.TemporaryDirectory() as folder:
        log = TrafficLog.open(f"sqlite:///{folder}/deep/log.db", Path(folder) / "images")
        yield log
        log.close()
