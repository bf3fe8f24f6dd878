"""Decisions that nobody acted on are told again; runs that died give theirs back.

The row in the log database is the truth, events are only messengers: whatever was lost on the way (an event while
the server was down, a run that was killed), the next pass of this flow finds the row and has it acted on. A pass
changes nothing where nothing is amiss.
"""

from __future__ import annotations

import time
from contextlib import suppress
from uuid import UUID

import sqlalchemy as sa
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled

from flows.events import GRACE_S, announce
from flows.notifying import tell
from monitoring import alarm
from monitoring.database import connect
from pipelines.settings import Settings, load_settings
from pipelines.upkeep import keep_within_limits

UNHEARD_S = 60.0  # an event that led to no run within this time was lost
LIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]


@flow(name="reconcile", flow_run_name="reconcile-{task}", persist_result=False, log_prints=True)
def reconcile(task: str = "digits") -> list[str]:
    """Have every open decision of a task acted on and told, and the log kept within its limits; says what was amiss."""
    settings = load_settings(task)
    done = settle(settings) + keep_within_limits(settings) + tell(settings)
    for sentence in done:
        print(sentence)  # noqa: T201  Prefect turns it into a line of the run's log
    return done


def settle(settings: Settings, now: float | None = None) -> list[str]:
    """One pass over the open decisions. now: seconds since the epoch."""
    now = time.time() if now is None else now
    done: list[str] = []
    settings.folder.mkdir(parents=True, exist_ok=True)
    engine = connect(settings.database_url)
    with get_client(sync_client=True) as client:
        live = _live_runs(client, settings)
        for run in [run for run in live if _stuck(run, now)]:
            client.set_flow_run_state(run.id, Cancelled(message="stuck before its first step"), force=True)
            live.remove(run)
            done.append(f"run {run.name} was stuck before its first step and is cancelled")
        for decision in [d for d in alarm.decisions(engine) if d.state in alarm.OPEN]:
            number = decision.decision
            if decision.state == "running":
                if not _dead(client, decision.flow_run_id):
                    continue
                again = alarm.requeue(engine, number, settings.alarm.attempts, now)
                what = "waits again" if again else "is given up; the logs of its runs say why they died"
                done.append(f"decision {number} {what}: its run {decision.flow_run_id} is dead")
                if not again:
                    continue
            elif not _due(engine, settings, decision, now):
                continue
            if live:
                continue  # a second run would only be cancelled; this row's turn comes when the first has ended
            told = announce(settings, decision)
            done.append(f"decision {number} is announced" if told else f"decision {number} waits: nobody answers")
            break  # one at a time, for the same reason
    engine.dispose()
    return done


def _due(engine: sa.Engine, settings: Settings, decision: alarm.Decision, now: float) -> bool:
    """Whether a decision without a run should have one by now."""
    if decision.state == "emitted":
        return abs(now - decision.updated_at) >= UNHEARD_S  # a clock may have been set back since
    return alarm.enough_rows(engine, decision, settings.retrain.minimum_new_rows)


def _live_runs(client: SyncPrefectClient, settings: Settings) -> list[FlowRun]:
    """The runs of this model's retraining that have not ended."""
    runs = client.read_flow_runs(
        flow_filter=FlowFilter.model_validate({"name": {"any_": ["retrain"]}}),
        deployment_filter=DeploymentFilter.model_validate({"name": {"any_": [settings.model_name]}}),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": LIVE}}}),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=200,
    )
    return [run for run in runs if run.state_type != StateType.SCHEDULED or not run.auto_scheduled]


def _stuck(run: FlowRun, now: float) -> bool:
    """Picked up, but its process never took its first step: it would hold the only slot for ever."""
    state = run.state
    return bool(state and state.is_pending() and now - state.timestamp.timestamp() > GRACE_S)


def _dead(client: SyncPrefectClient, flow_run_id: str | None) -> bool:
    with suppress(ValueError, ObjectNotFound):
        state = client.read_flow_run(UUID(flow_run_id or "")).state
        return state is None or state.is_final()
    return True
