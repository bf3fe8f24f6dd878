"""Micro-batches: requests that arrive together share one forward pass and one transaction of the traffic log.

In go rows, out come answers, and only when the rows are committed: answered means logged.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from models.images import content_hash, encode_png
from models.quality import quality
from monitoring.traffic import Prediction, TrafficLog
from pipelines.serving_beside import answer, left_to_people
from pipelines.serving_health import VERSION_HEADER
from pipelines.serving_model import ServedModel
from pipelines.serving_wire import Refusal, Row

FULL_ROWS = 32
WAIT_S = 0.002
MAX_WAITING_ROWS = 2048

_DIGITS = 6  # of a probability, in the answer and in the log

logger = logging.getLogger("fedloop.service")


@dataclass
class _Work:
    rows: Sequence[Row]
    answer: asyncio.Future[list[Prediction]]


class Batcher:
    """One task that gathers, and one thread that predicts and writes.

    served: gives the model to use now. on_logged: called with every committed batch.
    """

    def __init__(
        self,
        log: TrafficLog,
        served: Callable[[], ServedModel | None],
        why_none: Callable[[], str],
        on_logged: Callable[[Sequence[Prediction]], None],
    ) -> None:
        self._log, self._served, self._why_none, self._on_logged = log, served, why_none, on_logged
        self._queue: asyncio.Queue[_Work] = asyncio.Queue()
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, "predict")

    async def predict(self, rows: Sequence[Row]) -> list[Prediction]:
        """The rows as they stand in the log.

        Raises:
            Refusal: no champion, too many rows wait already, or the log cannot be written.
        """
        self._model()
        if self._waiting + len(rows) > MAX_WAITING_ROWS:
            raise Refusal(503, "overloaded", "too many requests are waiting; try again in a second", retry_after_s=1)
        work = _Work(rows, asyncio.get_running_loop().create_future())
        self._waiting += len(rows)
        self._queue.put_nowait(work)
        return await work.answer

    async def run(self) -> None:
        """Serve the queue, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._gather()
            rows = [row for work in batch for row in work.rows]
            result: list[Prediction] | Exception
            try:
                result = await loop.run_in_executor(self._thread, self._predict_and_log, rows)
            except Exception as error:  # the queue outlives every failure
                result = _refusal(error, self._served())
            self._waiting -= len(rows)
            start = 0
            for work in batch:
                end = start + len(work.rows)
                if work.answer.done():  # its client has gone
                    pass
                elif isinstance(result, Exception):
                    work.answer.set_exception(result)
                else:
                    work.answer.set_result(result[start:end])
                start = end

    def close(self) -> None:
        self._thread.shutdown()

    async def _gather(self) -> list[_Work]:
        batch = [await self._queue.get()]
        count = len(batch[0].rows)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT_S
        while count < FULL_ROWS:
            try:
                work = self._queue.get_nowait()
            except asyncio.QueueEmpty:
                if (left := deadline - loop.time()) <= 0:
                    break
                try:
                    work = await asyncio.wait_for(self._queue.get(), left)
                except TimeoutError:
                    break
            batch.append(work)
            count += len(work.rows)
        return batch

    def _model(self) -> ServedModel:
        if (served := self._served()) is None:
            raise Refusal(503, "no_champion", self._why_none(), retry_after_s=2)
        return served

    def _predict_and_log(self, rows: Sequence[Row]) -> list[Prediction]:
        served = self._model()
        images = np.stack([row.image for row in rows])
        probabilities, versions = answer(served, images, [row.site for row in rows])
        measured = quality(images).to_numpy()
        left = left_to_people(served, versions, images, measured, probabilities)
        predictions = []
        for row, shares, version, values, why in zip(rows, probabilities, versions, measured, left, strict=True):
            png = encode_png(row.image)
            best = int(shares.argmax())
            rounded = [round(float(share), _DIGITS) for share in shares]
            predictions.append(
                Prediction(
                    prediction_id=str(uuid.uuid4()),
                    request_id=row.request_id,
                    site=row.site,
                    at=row.at,
                    model_version=int(version),
                    png=png,
                    image_hash=content_hash(png),
                    prediction=best,
                    confidence=rounded[best],
                    probabilities=rounded,
                    quality=[float(value) for value in values],
                    abstained=why,
                )
            )
        self._log.record(predictions)
        self._on_logged(predictions)
        return predictions


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
