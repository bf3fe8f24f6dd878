"""What keeps a service answering while its log database is away: down, locked, hung, or on a full disk.

Rows that the database does not take in time go to a spool on the local disk, durably, and from then on all do, until
one thread, which tries every second, has brought a first batch of them into the database. A row is there once, by its
prediction id, however often it is offered. Where neither database nor spool takes it, `record` raises, so that nothing
is answered that is not logged.
"""

from __future__ import annotations

import base64
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, TypeVar

import sqlalchemy as sa

from models.errors import BadInput, Missing
from monitoring.database import METADATA
from monitoring.engines import prepare, reason
from monitoring.spool import Record, Spool
from monitoring.traffic import Conflict, Label, Prediction, TrafficLog

PATIENCE_S = 3.0
"""How long a database may take over a batch before it counts as away."""
RETRY_S = 1.0

logger = logging.getLogger("fedloop.log")
_T = TypeVar("_T")


class SafetyNet:
    """A traffic log that also takes rows while its database is away. Safe to share between threads.

    trouble: why the database counts as away, or None. spooled, merged, refused: rows since the start.
    """

    def __init__(self, log: TrafficLog, folder: Path) -> None:
        self.log, self.spool = log, Spool(folder)
        self.trouble: str | None = None
        self._told = ""
        self.spooled = self.merged = self.refused = 0
        self._waiting: dict[str, str] = {}  # prediction id → its segment
        self._said: dict[tuple[str, str], Label] = {}  # spooled labels by prediction id and source
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        for work in (self._write, self._keep_merging):
            threading.Thread(target=work, name=f"log{work.__name__}", daemon=True).start()

    @property
    def said(self) -> dict[str, Any]:
        """For /healthz."""
        state = "reachable" if self.trouble is None else "away: rows wait in the spool"
        return {"log": state, "spool_bytes": self.spool.size_bytes()}

    def prepare(self) -> None:
        """Make the log's tables, now or when the database is back."""
        try:
            self._in_time(prepare, self.log.engine, METADATA)
        except Exception as error:
            self._away(error)

    def record(self, predictions: Sequence[Prediction]) -> Sequence[Prediction]:
        """Write all of them, into the database or into the spool, and give them back as they stand there.

        Raises:
            SQLAlchemyError, OSError: neither takes them.
        """
        if self.trouble is None:
            try:
                return self._in_time(self.log.record, predictions)
            except Exception as error:
                if not _is_away(error):
                    raise
                self._away(error)
        try:
            segment = self.spool.append([_as_record(each) for each in predictions])
        except OSError:
            return self._in_time(self.log.record, predictions)  # perhaps it is back
        self._waiting |= {each.prediction_id: segment for each in predictions}
        self.spooled += len(predictions)
        return predictions

    def label_all(self, labels: Sequence[Label]) -> Sequence[Literal["stored", "already"]]:
        """As `TrafficLog.label_all`; labels of predictions that lie in this process' spool go there, too.

        Raises:
            UnknownPrediction, Conflict: as there.
            SQLAlchemyError, OSError: the database is away, or has some of the predictions and the spool others.
        """
        spooled = [
            label.prediction_id in self._waiting or (label.prediction_id, label.source) in self._said
            for label in labels
        ]
        if labels and all(spooled):
            return self._spool_labels(labels)
        if self.trouble is not None or any(spooled):
            raise OSError(self.trouble or "some of these predictions are on their way from the spool to the database")
        return self._in_time(self.log.label_all, labels)

    def merge(self) -> int:
        """Bring what is spooled into the database, oldest first; how many rows this took there.

        Raises:
            SQLAlchemyError, OSError: the database is away; what it has not taken stays in the spool.
        """
        before = self.merged
        if self.trouble is not None:
            self._in_time(prepare, self.log.engine, METADATA)
        self.spool.seal()
        self.spool.drain(self._take)
        waiting = list(self._waiting.items())  # first: a segment is there before its rows are in here
        there = {path.name for path in self.spool.segments()}
        for prediction_id in [key for key, segment in waiting if segment not in there]:
            self._waiting.pop(prediction_id)
        if not there:
            self._said.clear()
            self.trouble = None  # nothing is left to try it with: the next row will tell
        return self.merged - before

    def close(self) -> None:
        self._stop.set()
        self._calls.put(None)
        self.spool.seal()

    # -- the thread that writes to the database ---------------------------------------------------------------------

    def _in_time(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Have it done by the writing thread, which a database that hangs keeps busy in our stead."""
        done: Future[_T] = Future()
        self._calls.put((lambda: call(*arguments), done))
        try:
            return done.result(PATIENCE_S)
        except TimeoutError as error:
            done.cancel()
            raise OSError(f"the log database has taken more than {PATIENCE_S:.0f} s") from error

    def _write(self) -> None:
        while (work := self._calls.get()) is not None:
            call, done = work
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(call())
            except BaseException as error:
                done.set_exception(error)

    # -- the thread that merges -------------------------------------------------------------------------------------

    def _keep_merging(self) -> None:
        while not self._stop.wait(RETRY_S):
            try:
                if self.trouble is not None or self.spool.segments():
                    self.merge()
            except Exception as error:
                self._away(error)

    def _take(self, records: list[Record]) -> None:
        predictions = [_as_prediction(each) for each in records if "png" in each]
        try:
            self._in_time(self.log.record, predictions)
        except Exception as error:
            if _is_away(error):
                raise
            if len(records) > 1:
                for each in records:  # one of them spoils the others
                    self._take([each])
                return
            self.refused += 1
            self.spool.set_aside(records[0])
            logger.error("the log database takes a spooled row never (%s); it is in refused.jsonl", reason(error))
            return
        for label in [Label(**each) for each in records if "png" not in each]:
            try:
                self._in_time(self.log.label_all, [label])
            except BadInput as error:
                self.refused += 1
                logger.error("a spooled label is not taken: %s", error)
        self.merged += len(predictions)
        self._back()

    # -- state ------------------------------------------------------------------------------------------------------

    def _away(self, error: BaseException) -> None:
        if reason(error) != self._told:
            self._told = reason(error)
            logger.error("the log database is away (%s); rows go to %s", self._told, self.spool.folder)
        self.trouble = reason(error)

    def _back(self) -> None:
        self.trouble = None
        if self._told:
            self._told = ""
            logger.warning("the log database is back; the spool is emptied into it")

    def _spool_labels(self, labels: Sequence[Label]) -> Sequence[Literal["stored", "already"]]:
        said: list[Literal["stored", "already"]] = []
        new: dict[tuple[str, str], Label] = {}
        for label in labels:
            key = (label.prediction_id, label.source)
            before = self._said.get(key) or new.get(key)
            if before is not None and before.label != label.label:
                raise Conflict(
                    f"{label.source!r} has labelled prediction {label.prediction_id!r} {before.label} before, "
                    f"and {label.label} now; labels never change: send a correction under another source"
                )
            said.append("stored" if before is None else "already")
            new.setdefault(key, label)
        self.spool.append(
            [vars(label) for label in new.values() if (label.prediction_id, label.source) not in self._said]
        )
        self._said |= new
        return said


def _is_away(error: BaseException) -> bool:
    """Whether the same rows may be taken later: the database or the disk, and not the rows, is at fault."""
    if isinstance(error, sa.exc.DataError | sa.exc.IntegrityError):
        return False
    return isinstance(error, sa.exc.DBAPIError | sa.exc.TimeoutError | OSError | Missing)


def _as_record(prediction: Prediction) -> Record:
    return vars(prediction) | {
        "png": base64.b64encode(prediction.png).decode(),
        "quality": [float(value) for value in prediction.quality],
    }


def _as_prediction(record: Record) -> Prediction:
    return Prediction(**(record | {"png": base64.b64decode(record["png"])}))
