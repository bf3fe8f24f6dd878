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
import queue
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from models.images import content_hash, encode_png
from models.quality import measure
from monitoring.safety_net import SafetyNet
from monitoring.traffic import Prediction
from pipelines.serving_beside import answer, left_to_people
from pipelines.serving_health import VERSION_HEADER
from pipelines.serving_model import ServedModel
from pipelines.serving_wire import Refusal, Row

FULL_ROWS = 64
MAX_WAITING_ROWS = 2048

_DIGITS = 6  # of a probability, in the answer and in the log
_NAMES = uuid.UUID("2f0d4c1e-6f0e-5c0a-9d6c-8f3a0b7e51d2")

logger = logging.getLogger("fedloop.service")


@dataclass
class _Work:
    rows: Sequence[Row]
    answer: asyncio.Future[Sequence[Prediction]]


class Batcher:
    """One thread that gathers, predicts and writes; requests wait for it on the event loop.

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
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._waiting = 0
        self._thread = threading.Thread(target=self._work_off, name="predict", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def predict(self, rows: Sequence[Row]) -> Sequence[Prediction]:
        """The rows as they stand in the log.

        Raises:
            Refusal: no champion, too many rows wait already, the log cannot be written, or a request id of the site
                was used for another picture.
        """
        self._model()
        if self._waiting + len(rows) > MAX_WAITING_ROWS:
            raise Refusal(503, "overloaded", "too many requests are waiting; try again in a second", retry_after_s=1)
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._thread.start()
        work = _Work(rows, self._loop.create_future())
        self._waiting += len(rows)
        self._queue.put(work)
        return await work.answer

    def close(self) -> None:
        """Work off what waits, then end the thread."""
        self._queue.put(None)
        if self._loop is not None:
            self._thread.join()

    def _work_off(self) -> None:
        going = True
        while going:
            batch, going = self._gather()
            if not batch:
                continue
            rows = [row for work in batch for row in work.rows]
            result: Sequence[Prediction] | Exception
            try:
                result = self._predict_and_log(rows)
            except Exception as error:  # the queue outlives every failure
                result = _refusal(error, self._served())
            assert self._loop is not None
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._deliver, batch, result)

    def _gather(self) -> tuple[list[_Work], bool]:
        """All that has come, up to a full batch; False with the last one."""
        work = self._queue.get()
        batch: list[_Work] = []
        count = 0
        while work is not None:
            batch.append(work)
            count += len(work.rows)
            if count >= FULL_ROWS:
                return batch, True
            try:
                work = self._queue.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

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

    def _predict_and_log(self, rows: Sequence[Row]) -> Sequence[Prediction]:
        served = self._model()
        images = np.stack([row.image for row in rows])
        answers, versions = answer(served, images, [row.site for row in rows])
        probabilities, values = answers.astype(np.float64).round(_DIGITS), measure(images)
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
        logged = self._log.record(predictions)
        self._on_logged(logged)
        return logged


def _name(row: Row) -> str:
    """The prediction's id: the same for the same request id of a site, so that the log takes it once."""
    return str(uuid.uuid4() if row.request_id is None else uuid.uuid5(_NAMES, f"{row.site}\n{row.request_id}"))


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
