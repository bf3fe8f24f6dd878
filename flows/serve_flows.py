"""The served flows: schedules, the automation that answers a drift, and what keeps a run from happening twice.

`python -m flows.serve_flows` registers a task's deployments at the Prefect server and runs what becomes due, two
runs at a time, each in a process of its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx

from flows.events import EVENT, GRACE_S, resource
from flows.programs import ready_file
from models.errors import Missing
from pipelines.settings import Settings, load_settings

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.deployments.runner import RunnerDeployment
    from prefect.runner import Runner
    from prefect.schedules import Schedule

SILENCE_S = 90  # three heartbeats


def deployments(settings: Settings) -> list[RunnerDeployment]:
    """What is served for a task. A rehearsal looks and retrains when its traffic says so, not by the clock."""
    from prefect.schedules import Cron, Interval

    from flows.monitor import monitor
    from flows.reconcile import reconcile
    from flows.retrain import retrain
    from flows.steps import release

    every, live, steps = settings.retrain, settings.stage == "live", settings.steps
    return [
        deployment(settings, retrain, Cron(every.cron) if live else None, on_drift=True),
        deployment(settings, monitor, Interval(timedelta(seconds=every.monitor_interval_s)) if live else None),
        deployment(settings, reconcile, Interval(timedelta(seconds=every.reconcile_interval_s))),
        deployment(settings, release, Interval(timedelta(seconds=settings.release.interval_s)) if steps else None),
    ]


def deployment(
    settings: Settings, flow: Flow[Any, Any], schedule: Schedule | None = None, on_drift: bool = False
) -> RunnerDeployment:
    """A flow of this task that never runs twice at the same time.

    on_drift: a confirmed drift of this task's model starts it, with the decision's number as a parameter.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment
    from prefect.events import DeploymentEventTrigger
    from prefect.types.entrypoint import EntrypointType

    # An untyped template would arrive as text, and text is not an int.
    number = {"__prefect_kind": "jinja", "template": "{{ event.payload.decision | tojson }}"}
    trigger = DeploymentEventTrigger(
        name=f"{flow.name} {settings.model_name} when it drifts",
        expect={EVENT},
        match={"prefect.resource.id": resource(settings)},
        for_each={"prefect.resource.id"},
        threshold=1,
        within=timedelta(0),
        parameters={
            "task": settings.task_name,
            "decision": {"__prefect_kind": "json", "value": number},
            "cause": "{{ event.payload.cause | string }}",
        },
    )
    made = flow.to_deployment(
        name=settings.model_name,
        parameters={"task": settings.task_name},
        schedules=[schedule] if schedule else [],  # an empty list also removes what an earlier start had left
        triggers=[trigger] if on_drift else [],
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW, grace_period_seconds=GRACE_S
        ),
        tags=[settings.stage, settings.slug],
        entrypoint_type=EntrypointType.MODULE_PATH,  # a file's path would tie the runs to the current folder
    )
    assert isinstance(made, RunnerDeployment)  # a coroutine only where an event loop runs
    return made


def serve(settings: Settings, served: Sequence[RunnerDeployment]) -> None:
    """Register deployments and run what becomes due, until SIGTERM."""
    from prefect.runner import Runner

    # Without a limit, everything that became due during a downtime would start at once.
    # A rehearsal's schedules end with it; those of the live loop survive a restart.
    over = settings.stage == "rehearsal"
    runner = Runner(name=f"fedloop {settings.model_name}", pause_on_shutdown=over, limit=2)
    added = [one for one in map(runner.add_deployment, served) if isinstance(one, UUID)]
    crash_silent_runs()
    skip_backlog(added)
    ready_file(settings).parent.mkdir(parents=True, exist_ok=True)
    ready_file(settings).write_text(str(os.getpid()))
    asyncio.run(_run_until_sigterm(runner))


async def _run_until_sigterm(runner: Runner) -> None:
    """Poll and run; on SIGTERM cancel the runs, so that the server knows that they ended.

    Prefect's own handler never awaits its `stop`: the runs are killed, and stay "Running" until they are missed.
    """
    polling = asyncio.create_task(runner.start())
    await asyncio.sleep(0)  # it installs its own handler first
    loop, stopping = asyncio.get_running_loop(), set[asyncio.Task[None] | bool]()
    loop.add_signal_handler(
        signal.SIGTERM,
        lambda: stopping.add(loop.create_task(runner.astop()) if runner.started else polling.cancel()),
    )
    with suppress(asyncio.CancelledError):
        await polling


def crash_silent_runs() -> None:
    """Have the server call a run crashed that sends no heartbeat any more.

    When a runner dies together with its run, nobody else would say so: the run would stay "Running" for ever, and
    every new one would be cancelled in its favour.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    name = "fedloop: a run without a heartbeat has crashed"
    ends = [f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")]
    wanted = AutomationCore(
        name=name,
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ends},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENCE_S),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {SILENCE_S} s")],
    )
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(name=name):
            client.create_automation(wanted)


def skip_backlog(deployments: Sequence[UUID]) -> int:
    """Forget scheduled runs that a downtime made late, but for the last of each deployment; returns how many.

    Runs that an event or a person asked for are kept.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    due = datetime.now(UTC) - timedelta(seconds=5)
    late = {"state": {"type": {"any_": [StateType.SCHEDULED]}}, "expected_start_time": {"before_": due}}
    skipped = 0
    with get_client(sync_client=True) as client:
        for one in deployments:
            runs = client.read_flow_runs(
                flow_run_filter=FlowRunFilter.model_validate(late),
                deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [one]}}),
                sort=FlowRunSort.EXPECTED_START_TIME_DESC,
                limit=200,
            )
            for run in [run for run in runs if run.auto_scheduled][1:]:
                client.delete_flow_run(run.id)
                skipped += 1
    return skipped


def wait_for_prefect(settings: Settings, patience_s: float = 120.0) -> None:
    """Return once the Prefect server answers.

    Raises:
        Missing: it did not within the patience.
    """
    address, deadline = settings.url("prefect") + "/api/health", time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            if httpx.get(address, timeout=5, trust_env=False, verify=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise Missing(f"the Prefect server does not answer at {address}; start it with `make up`")


def main() -> None:
    settings = load_settings()
    settings.apply_environment()  # before the first import of Prefect, which reads it once
    wait_for_prefect(settings)
    serve(settings, deployments(settings))


if __name__ == "__main__":
    main()
