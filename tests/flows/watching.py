"""What the tests of this folder look at: decisions' rows, and the runs of the tiny retraining."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun

from monitoring import alarm
from monitoring.database import DECISIONS, connect
from pipelines.settings import Settings


def until(what: Callable[[], Any], patience_s: float = 90.0) -> Any:
    """What `what` returns once that is true."""
    deadline = time.monotonic() + patience_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {patience_s} s"
        time.sleep(0.1)
    return found


def new_decision(settings: Settings, state: str = "waiting", **values: Any) -> alarm.Decision:
    """A decision's row, as the alarm would write it."""
    row = {"cause": "drift", "evidence": {"from_seq": 0}, "created_at": 1.0, "updated_at": 1.0, "attempts": 0}
    settings.folder.mkdir(parents=True, exist_ok=True)
    with connect(settings.database_url).begin() as connection:
        made = connection.execute(sa.insert(DECISIONS).values(row | {"state": state} | values))
        assert made.inserted_primary_key
        number = int(made.inserted_primary_key[0])
    return row_of(settings, number)


class Runs:
    """The runs of the tiny retraining of this model since this was made."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log = settings.folder / "runs"
        self._old = {run.id for run in self._read()}

    def started(self) -> list[tuple[int, str]]:
        """Decision and cause of every run that took its first step."""
        return [ast.literal_eval(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def all(self) -> list[FlowRun]:
        return [run for run in self._read() if run.id not in self._old]

    def live(self) -> list[FlowRun]:
        return [run for run in self.all() if not (run.state and run.state.is_final())]

    def unfinished(self) -> list[FlowRun]:
        """Also those from before."""
        return [run for run in self._read() if not (run.state and run.state.is_final())]

    def _read(self) -> list[FlowRun]:
        with get_client(sync_client=True) as client:
            return client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=["retrain"])),
                deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[self.settings.model_name])),
                limit=200,
            )


def row_of(settings: Settings, number: int) -> alarm.Decision:
    return next(d for d in alarm.decisions(connect(settings.database_url)) if d.decision == number)
