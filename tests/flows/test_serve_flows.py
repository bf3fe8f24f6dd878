"""Deployments at a real Prefect server: an event starts one run and never two, and a restart leaves nothing behind."""

from __future__ import annotations

import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_flows import monitor, retrain
from watching import Runs, new_decision, row_of, until

from flows import serve_flows
from flows.events import announce
from models.errors import Missing
from pipelines.settings import Settings, load_settings

pytestmark = pytest.mark.house


def test_an_event_starts_one_run_and_no_second_and_a_stopped_runner_says_that_its_run_ended(
    prefect_house: Settings, runner: subprocess.Popen[bytes]
) -> None:
    settings, runs = prefect_house, Runs(prefect_house)
    first = new_decision(settings, evidence={"from_seq": 7, "share": float("nan")})
    assert announce(settings, first)
    assert row_of(settings, first.decision).state == "emitted"
    until(lambda: row_of(settings, first.decision).state == "running")
    until(runs.started)
    # The payload's number arrived as a number, and its text as text.
    assert runs.started() == [(first.decision, "drift")]

    second = new_decision(settings, cause="drift again")
    assert announce(settings, second)
    until(lambda: "Cancelled" in [run.state_name for run in runs.all()])
    assert row_of(settings, second.decision).state == "emitted"  # it waits for the next pass of the reconcile flow
    assert len(runs.live()) == 1

    # Prefect's own handler of SIGTERM leaves the run "Running", and every new one is cancelled in its favour.
    begun = psutil.Process(runner.pid).children(recursive=True)
    runner.terminate()
    assert runner.wait(60) == 0
    assert {run.state_name for run in runs.all()} == {"Cancelled"}
    assert not any(process.is_running() for process in begun)
    assert runs.started() == [(first.decision, "drift")]


def test_another_models_drift_starts_nothing(prefect_house: Settings) -> None:
    serve_flows.deployment(prefect_house, retrain, on_drift=True).apply()
    live, runs = prefect_house.model_copy(update={"stage": "live"}), Runs(prefect_house)
    assert announce(live, new_decision(live))
    time.sleep(3)
    assert runs.all() == []


def test_a_schedule_can_be_changed_and_taken_away(prefect_house: Settings) -> None:
    from prefect.client.orchestration import get_client
    from prefect.schedules import Interval

    changed = prefect_house.model_copy(update={"stage": "live"})

    def schedules(*wanted: float) -> list[Any]:
        for seconds in wanted or (None,):
            every = Interval(timedelta(seconds=seconds)) if seconds else None
            number = serve_flows.deployment(changed, monitor, every).apply()
        with get_client(sync_client=True) as client:
            return [one.schedule.interval.total_seconds() for one in client.read_deployment(number).schedules]

    assert schedules(1800, 7200) == [7200]
    assert schedules() == []


def test_the_automations_exist_once_however_often_the_flows_are_served(prefect_house: Settings) -> None:
    from prefect.client.orchestration import get_client

    other = prefect_house.model_copy(update={"stage": "live"})
    for _ in range(2):
        serve_flows.deployment(other, retrain, on_drift=True).apply()
        serve_flows.crash_silent_runs()
    with get_client(sync_client=True) as client:
        names = [automation.name for automation in client.read_automations()]
    assert names.count("fedloop: a run without a heartbeat has crashed") == 1
    assert names.count("retrain digits when it drifts") == 1


def test_a_downtime_leaves_one_late_run_and_what_people_asked_for(prefect_house: Settings) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
    from prefect.schedules import Interval

    other = prefect_house.model_copy(update={"stage": "live"})
    number = serve_flows.deployment(other, monitor, Interval(timedelta(seconds=1))).apply()
    mine = DeploymentFilter(id=DeploymentFilterId(any_=[number]))
    with get_client(sync_client=True) as client:
        asked = client.create_flow_run_from_deployment(number)

        def late() -> list[Any]:
            past = datetime.now(UTC) - timedelta(seconds=6)
            return [r for r in client.read_flow_runs(deployment_filter=mine) if r.expected_start_time < past]

        until(lambda: len([run for run in late() if run.auto_scheduled]) > 3 and asked.id in {r.id for r in late()})
        before = late()
        assert serve_flows.skip_backlog([number]) >= len(before) - 2
        kept = {run.id for run in client.read_flow_runs(deployment_filter=mine)} & {run.id for run in before}
        assert asked.id in kept
        assert len(kept) <= 2
        client.delete_deployment(number)


def test_serving_without_a_server_is_a_sentence(tmp_path: Path) -> None:
    settings = load_settings("digits", home=tmp_path, ports={"prefect": 9})
    with pytest.raises(
        Missing, match=r"the Prefect server does not answer at .*:9/api/health; start it with `make up`"
    ):
        serve_flows.wait_for_prefect(settings, patience_s=0.5)
