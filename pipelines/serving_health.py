"""What the service counts about itself that outlives it: a row of counters every few seconds in the log database.

In: every answer with the version that gave it, every logged row. Out: ticks (monitoring/health.py). Prometheus'
counters beside it die with the process, and each replica has its own; these are summed by whoever asks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress

import sqlalchemy as sa

from monitoring import health
from monitoring.health import Counts, Tick
from monitoring.traffic import Prediction

TICK_S = 5.0
VERSION_HEADER = "fedloop-version"
"""Of an answer, or of an error: the model version behind it."""

_PATHS = frozenset({"/predict", "/predict/image", "/predict/images"})
_MOST_WAITING = 720  # ticks kept while the database is down: an hour of them


class HealthCounter:
    """The counters of one replica. serving: the version that a request without a word of its own is counted under."""

    def __init__(self, engine: sa.Engine, serving: Callable[[], int]) -> None:
        self._engine, self._serving = engine, serving
        self._replica = f"{socket.gethostname()[:24]}-{os.getpid()}-{time.time_ns()}"
        self._lock = threading.Lock()
        self._counts: dict[int, Counts] = defaultdict(Counts)
        self._waiting: list[Tick] = []
        self._ticks = 0

    def answered(self, path: str, status: int, seconds: float, version: int | None) -> None:
        """One request has its answer; those that ask for no prediction are passed over."""
        if path not in _PATHS:
            return
        with self._lock:
            counts = self._counts[self._serving() if version is None else version]
            if status < 400:
                counts.took(seconds)
            elif status < 500:
                counts.refused += 1
            elif status == 503:
                counts.unavailable += 1
            else:
                counts.errors += 1

    def logged(self, predictions: Sequence[Prediction]) -> None:
        with self._lock:
            for each in predictions:
                self._counts[each.model_version].rows += 1
                self._counts[each.model_version].abstained += each.abstained is not None

    def flush(self) -> None:
        """Write what was counted since the last time. While the database is down it waits, under its own number."""
        with self._lock:
            if self._counts:
                self._ticks += 1
                self._waiting.append(Tick(self._replica, self._ticks, time.time(), dict(self._counts)))
                self._counts.clear()
            del self._waiting[:-_MOST_WAITING]
            ticks = list(self._waiting)
        if not ticks:
            return
        health.record(self._engine, ticks)
        with self._lock:
            self._waiting = [tick for tick in self._waiting if tick.tick > ticks[-1].tick]

    async def follow(self) -> None:
        """Flush for ever, and once more when it is cancelled."""
        try:
            while True:
                await asyncio.sleep(TICK_S)
                with suppress(sa.exc.SQLAlchemyError):
                    await asyncio.to_thread(self.flush)
        finally:
            try:
                self.flush()
            except sa.exc.SQLAlchemyError:
                logging.getLogger("fedloop.service").warning("the last seconds' counters could not be written")
