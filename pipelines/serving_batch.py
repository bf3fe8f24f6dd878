"""Micro-batches: requests that arrive together share one forward pass and one transaction of the traffic log.

In go rows, out come answers, and only when the rows are committed, or durably spooled: answered means logged. A request
id is a promise too: the same id of the same site is one prediction, so a client may send again what broke, and is told
what the log holds. A batch is what has come while the one before was worked on, so nobody waits for company.

What "logged" means: row and picture are committed to SQLite in WAL mode with synchronous=NORMAL, which outlives
kill -9 of every process; after a power failure the commits of the last moments may be gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from models.images import content_hash, encode_png
from models.quality import measure
from monitoring.safety_net import SafetyNet
from monitoring.traffic import Prediction
from pipelines.serving_beside import DIGITS, answer, left_to_people
from pipelines.serving_health import VERSION_HEADER
from pipelines.serving_model import ServedModel
from pipelines.serving_wire import Refusal, Row, prediction_id

FULL_ROWS = 64
INLINE_S = 0.01
"""A batch that is predicted in less does not leave the event loop."""

MAX_WAITING_ROWS = 2048

logger = logging.getLogger("fedloop.service")


@dataclass
class _Work:
    rows: Sequence[Row]
    answer: asyncio.Future[Sequence[Prediction]]


class Batcher:
    """One task that gathers, and a thread that writes.

    A quick model predicts on the event loop itself: to hand the interpreter's lock from thread to thread takes longer
    than a small network. A slow one predicts in the thread, so that nobody's request waits for it to be read.

    served: gives the model to use now. on_logged: called with every committed batch.
    """

    def __init__(
        self,
        log: SafetyNet,
        served: Callable[[], ServedModel | None],
        why_none: Callable[[], str],
        on_logged: Callable[[Sequence[Prediction]], None],
    ) -> None:
        self._log, self._served, self._why_none, self._on_logged = log, served, why_none, on_logged
        self._queue: deque[_Work] = deque()
        self._come = asyncio.Event()
        self._waiting = 0
        self._row_s = INLINE_S  # what a row of the last batch took to predict: at first nobody knows, so not inline
        self._thread = ThreadPoolExecutor(1, "predict")

    async def predict(self, rows: Sequence[Row]) -> Sequence[Prediction]:
        """The rows as they stand in the log.

        Raises:
            Refusal: no champion, too many rows wait already, the log cannot be written, or a request id of the site
                was used for another picture.
        """
        self._model()
        if self._waiting + len(rows) > MAX_WAITING_ROWS:
            raise Refusal(503, "overloaded", "too many requests are waiting; try again in a second", retry_after_s=1)
        work = _Work(rows, asyncio.get_running_loop().create_future())
        self._waiting += len(rows)
        self._queue.append(work)
        self._come.set()
        return await work.answer

    async def run(self) -> None:
        """Serve the queue, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._come.wait()
            await asyncio.sleep(0)  # whoever is just being read comes along
            batch = self._gather()
            rows = [row for work in batch for row in work.rows]
            result: Sequence[Prediction] | Exception
            try:
                if self._row_s * len(rows) < INLINE_S:
                    predictions = self._predict(rows)
                else:
                    predictions = await loop.run_in_executor(self._thread, self._predict, rows)
                result = await loop.run_in_executor(self._thread, self._log.record, predictions)
                self._on_logged(result)
            except Exception as error:  # the queue outlives every failure
                result = _refusal(error, self._served())
            self._deliver(batch, result)

    def close(self) -> None:
        self._thread.shutdown()

    def _gather(self) -> list[_Work]:
        """All that has come, up to a full batch."""
        batch, count = [], 0
        while self._queue and count < FULL_ROWS:
            batch.append(self._queue.popleft())
            count += len(batch[-1].rows)
        if not self._queue:
            self._come.clear()
        return batch

    def _deliver(self, batch: Sequence[_Work], result: Sequence[Prediction] | Exception) -> None:
        start = 0
        for work in batch:
            end = start + len(work.rows)
            self._waiting -= len(work.rows)
            if work.answer.done():  # its client has gone
                pass
            elif isinstance(result, Exception):
                work.answer.set_exception(result)
            else:
                answers = result[start:end]
                other = next((i for i, row in enumerate(answers) if row.image_hash != content_hash(row.png)), None)
                if other is None:
                    work.answer.set_result(answers)
                else:
                    work.answer.set_exception(_used(work.rows[other]))
            start = end

    def _model(self) -> ServedModel:
        if (served := self._served()) is None:
            raise Refusal(503, "no_champion", self._why_none(), retry_after_s=2)
        return served

    def _predict(self, rows: Sequence[Row]) -> Sequence[Prediction]:
        began = time.thread_time()
        served = self._model()
        images = np.stack([row.image for row in rows])
        answers, versions = answer(served, images, [row.site for row in rows])
        probabilities, values = answers.astype(np.float64).round(DIGITS), measure(images)
        left = left_to_people(served, versions, images, values, answers)
        best, measured = probabilities.argmax(axis=1).tolist(), values.tolist()
        predictions = []
        for i, (row, shares) in enumerate(zip(rows, probabilities.tolist(), strict=True)):
            png = encode_png(row.image)
            predictions.append(
                Prediction(
                    prediction_id=_name(row),
                    request_id=row.request_id,
                    site=row.site,
                    at=row.at,
                    model_version=int(versions[i]),
                    png=png,
                    image_hash=content_hash(png),
                    prediction=best[i],
                    confidence=shares[best[i]],
                    probabilities=shares,
                    quality=measured[i],
                    abstained=left[i],
                )
            )
        self._row_s = (time.thread_time() - began) / len(rows)
        return predictions


def _name(row: Row) -> str:
    return str(uuid.uuid4()) if row.request_id is None else prediction_id(row.site, row.request_id)


def _used(row: Row) -> Refusal:
    return Refusal(
        409,
        "conflict",
        f"site {row.site!r} has used the request id {row.request_id!r} for another picture; give every picture its own",
    )


def _refusal(error: Exception, served: ServedModel | None) -> Refusal:
    """What the clients of a batch that failed are told, with the version under which it did."""
    refusal = error if isinstance(error, Refusal) else _failure(error)
    if served is not None:
        refusal.headers[VERSION_HEADER] = str(served.version.number)
    return refusal


def _failure(error: Exception) -> Refusal:
    if isinstance(error, sa.exc.SQLAlchemyError | OSError):
        first = str(error).partition("\n")[0]
        logger.error("the traffic log cannot be written, so nothing is answered: %s", first)
        return Refusal(
            503,
            "log_unavailable",
            "the prediction could not be logged, so it is not given; try again",
            retry_after_s=2,
        )
    logger.error("a batch failed", exc_info=error)
    return Refusal(500, "internal", f"the service failed ({type(error).__name__}); its log says more")
