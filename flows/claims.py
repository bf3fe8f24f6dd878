"""Claiming a decision: of all runs that are started for one alarm, the first works and the others stand down."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prefect.runtime import flow_run

from monitoring import alarm
from monitoring.database import connect
from pipelines.settings import Settings

LOG = logging.getLogger("fedloop")


@dataclass
class Work:
    """What a claimed run is to do. from_seq: where the traffic to learn from begins; None: no decision asked."""

    from_seq: int | None
    outcome: str | None = None

    def finish(self, outcome: str) -> None:
        self.outcome = outcome


@contextmanager
def claimed(settings: Settings, decision: int | None) -> Iterator[Work | None]:
    """Claim a decision's row for the body; None where another run has it.

    A body that raises leaves the row `running`: the reconcile flow sees that its run is dead and asks again.
    """
    if decision is None:
        yield Work(None)
        return
    engine = connect(settings.database_url)
    if not alarm.claim(engine, decision, str(flow_run.id)):
        LOG.info("retrain: decision %d is somebody else's already, nothing to do", decision)
        yield None
        return
    found = next(row for row in alarm.decisions(engine) if row.decision == decision)
    work = Work(int(found.evidence["from_seq"]))
    yield work
    if work.outcome is not None:
        alarm.finish(engine, decision, work.outcome, "done")
