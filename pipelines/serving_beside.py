"""Two versions in one service: who answers a row, and what the other one would have said.

In go a batch's images and sites; out come probabilities, each with the version that gave them. Where one version
fails, the other one answers. What was answered is afterwards predicted by the other version too, in a thread of its
own behind a bounded queue, and logged in `shadow_predictions`: no answer waits for it, and what it cannot keep up
with is shed and counted.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from models.images import Images, decode_png
from monitoring.database import SHADOW_PREDICTIONS, insert_new
from monitoring.engines import reason
from monitoring.traffic import Prediction
from pipelines.abstain import Floats, reasons
from pipelines.serving_model import ServedModel

WAITING_BATCHES = 64
FLUSH_ROWS = 256
FLUSH_S = 0.5
TIMED_EVERY = 4  # batches; both versions predict them, and their times are compared

DIGITS = 6
"""Of a probability, in the answer and in the log."""

logger = logging.getLogger("fedloop.service")


def answer(served: ServedModel, images: Images, sites: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Probabilities [n, classes] and versions [n] of a batch.

    Raises:
        Exception: the version fails, and so does the one beside it, or there is none.
    """
    beside = served.beside
    if beside is None:
        return served.predict(images), np.full(len(images), served.version.number)
    shares = np.empty((len(images), len(served.task.classes)), dtype=np.float32)
    versions = np.empty(len(images), dtype=np.int64)
    others = np.array([beside.answers(site) for site in sites], dtype=bool)
    for first, second, rows in ((served, beside.model, ~others), (beside.model, served, others)):
        if rows.any():
            try:
                shares[rows], versions[rows] = first.predict(images[rows]), first.version.number
            except Exception as error:
                logger.error("version %d fails, %d answers: %s", first.version.number, second.version.number, error)
                shares[rows], versions[rows] = second.predict(images[rows]), second.version.number
    return shares, versions


def left_to_people(
    served: ServedModel, versions: NDArray[np.int64], images: Images, quality: Floats, shares: NDArray[np.floating]
) -> list[str | None]:
    """For each row why the version that predicted it abstains, or None. quality: [n, 5]; shares: [n, classes]."""
    found: list[str | None] = [None] * len(images)
    for model in (served, *([served.beside.model] if served.beside else [])):
        rows = np.flatnonzero(versions == model.version.number)
        if model.limits is not None and len(rows):
            said = reasons(model.limits, model.task, images[rows], quality[rows], shares[rows].max(axis=1))
            for row, why in zip(rows, said, strict=True):
                found[row] = why
    return found


class Shadow:
    """The thread that predicts what others have answered. on_rows(version, rows) and on_shed(rows) count."""

    def __init__(
        self,
        engine: sa.Engine,
        served: Callable[[], ServedModel | None],
        on_rows: Callable[[int, int], None],
        on_shed: Callable[[int], None],
    ) -> None:
        self._engine, self._served, self._on_rows, self._on_shed = engine, served, on_rows, on_shed
        self._queue: queue.Queue[tuple[ServedModel, Sequence[Prediction]] | None] = queue.Queue(WAITING_BATCHES)
        self._batches = 0
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, answered: Sequence[Prediction]) -> None:
        """Take a batch that was answered and logged; returns at once."""
        served = self._served()
        if served is None or served.beside is None:
            return
        try:
            self._queue.put_nowait((served, answered))
        except queue.Full:
            self._on_shed(len(answered))

    def close(self) -> None:
        """Finish what waits, within some seconds."""
        try:
            self._queue.put(None, timeout=2.0)
        except queue.Full:
            return
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        rows: list[dict[str, Any]] = []
        flushed, over = time.monotonic(), False
        while not over:
            try:
                work = self._queue.get(timeout=FLUSH_S)
                over = work is None
                rows += [] if work is None else self._predict(*work)
            except queue.Empty:
                pass
            except Exception:  # the thread outlives every failure
                logger.exception("a batch could not be predicted in shadow")
            if rows and (over or len(rows) >= FLUSH_ROWS or time.monotonic() - flushed >= FLUSH_S):
                self._flush(rows)
                rows, flushed = [], time.monotonic()

    def _predict(self, served: ServedModel, answered: Sequence[Prediction]) -> list[dict[str, Any]]:
        assert served.beside is not None
        self._batches += 1
        rows: list[dict[str, Any]] = []
        for model, other in ((served.beside.model, served), (served, served.beside.model)):
            own = [each for each in answered if each.model_version == other.version.number]
            if own:
                rows += _predicted(model, other, own, timed=self._batches % TIMED_EVERY == 1)
                self._on_rows(model.version.number, len(own))
        return rows

    def _flush(self, rows: list[dict[str, Any]]) -> None:
        try:
            with self._engine.begin() as connection:
                connection.execute(insert_new(self._engine, SHADOW_PREDICTIONS), rows)
        except sa.exc.SQLAlchemyError as error:
            logger.error("shadow predictions cannot be written: %s", reason(error))
            self._on_shed(len(rows))


def _predicted(
    model: ServedModel, other: ServedModel, answered: Sequence[Prediction], timed: bool
) -> list[dict[str, Any]]:
    """Rows of SHADOW_PREDICTIONS: what `model` says of rows that `other` answered."""
    images = np.stack([decode_png(each.png, model.task.input) for each in answered])
    slower: float | None = None
    shares: list[list[float]] = [[]] * len(answered)
    said: list[int | None] = [None] * len(answered)
    try:
        began = time.perf_counter()
        found = model.predict(images)
        took = time.perf_counter() - began
        shares, said = [[round(float(x), DIGITS) for x in row] for row in found], found.argmax(axis=1).tolist()
        if timed:
            began = time.perf_counter()
            other.predict(images)
            slower = took / (time.perf_counter() - began)
    except Exception as error:  # that is what a shadow is for: the row says that the version failed
        logger.error("version %d fails in shadow: %s", model.version.number, error)
    now = time.time()
    return [
        {
            "prediction_id": each.prediction_id,
            "model_version": model.version.number,
            "prediction": best,
            "probabilities": probabilities,
            "at": now,
            "slower": slower,
        }
        for each, best, probabilities in zip(answered, said, shares, strict=True)
    ]
