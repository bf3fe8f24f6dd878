"""The pass over open decisions, against a real Prefect server: what was lost on the way is found again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import states
from prefect.client.orchestration import get_client
from tiny_flows import retrain
from watching import Runs, new_decision, row_of, until

from flows import serve_flows
from flows.events import GRACE_S, announce
from flows.ports import free_ports
from flows.reconcile import UNHEARD_S, settle
from pipelines.settings import Settings

pytestmark = pytest.mark.house


@pytest.fixture
def home(prefect_house: Settings, tmp_path: Path) -> Settings:
    """Settings with an empty log, whose retraining nobody serves: its runs stay as they are made."""
    settings = prefect_house.model_copy(update={"stage": "live", "log_url": f"sqlite:///{tmp_path / 'log.db'}"})
    settings.retrain = settings.retrain.model_copy(update={"minimum_new_rows": 0})
    serve_flows.deployment(settings, retrain, on_drift=True).apply()
    with get_client(sync_client=True) as client:
        for run in Runs(settings).unfinished():
            client.set_flow_run_state(run.id, states.Cancelled(), force=True)
    return settings


def run_in(state: Any) -> str:
    """A run of the retraining in this state; its id."""
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name("retrain/digits")
        run = client.create_flow_run_from_deployment(found.id)
        if state is not None:
            client.set_flow_run_state(run.id, state, force=True)
        return str(run.id)


def asked_for(runs: Runs) -> list[Any]:
    return [run.parameters.get("decision") for run in runs.all()]


def test_what_was_decided_while_the_server_was_down_is_told_later_and_once(home: Settings) -> None:
    runs, row = Runs(home), new_decision(home)
    assert announce(free_ports(home), row, patience_s=0.5) is False
    assert row_of(home, row.decision) == row
    assert settle(home) == [f"decision {row.decision} is announced"]
    assert row_of(home, row.decision).state == "emitted"
    until(runs.live)
    assert asked_for(runs) == [row.decision]
    assert settle(home) == []
    assert settle(home, now=time.time() + UNHEARD_S + 1) == []  # its run exists, though nobody has begun it yet
    assert asked_for(runs) == [row.decision]


def test_an_event_that_led_to_no_run_is_repeated(home: Settings) -> None:
    runs = Runs(home)
    row = new_decision(home, state="emitted", updated_at=time.time() - UNHEARD_S / 2)
    assert settle(home) == []
    assert settle(home, now=time.time() + UNHEARD_S) == [f"decision {row.decision} is announced"]
    until(runs.live)
    assert asked_for(runs) == [row.decision]


def test_a_drift_with_too_few_rows_waits_for_more(home: Settings) -> None:
    home.retrain.minimum_new_rows = 1
    row = new_decision(home)
    assert settle(home) == []
    assert row_of(home, row.decision) == row


def test_a_decision_whose_run_goes_on_is_left_alone(home: Settings) -> None:
    row = new_decision(home, state="running", flow_run_id=run_in(states.Running()), attempts=1)
    assert settle(home) == []
    assert row_of(home, row.decision) == row


@pytest.mark.parametrize("end", ["Crashed", "Failed", "Cancelled", "vanished"])
def test_a_decision_whose_run_died_is_told_again(home: Settings, end: str) -> None:
    runs = Runs(home)
    gone = str(uuid4()) if end == "vanished" else run_in(getattr(states, end)())
    row = new_decision(home, state="running", flow_run_id=gone, attempts=2)
    assert settle(home) == [
        f"decision {row.decision} waits again: its run {gone} is dead",
        f"decision {row.decision} is announced",
    ]
    assert row_of(home, row.decision).state == "emitted"
    until(lambda: row.decision in asked_for(runs))


def test_a_decision_whose_runs_keep_dying_is_given_up_with_a_sentence(home: Settings) -> None:
    row = new_decision(home, state="running", flow_run_id=run_in(states.Crashed()), attempts=home.alarm.attempts)
    (told,) = settle(home)
    assert told.startswith(f"decision {row.decision} is given up; the logs of its runs say why they died")
    assert row_of(home, row.decision).state == "failed"
    assert row_of(home, row.decision).outcome == "given up: 3 runs died over it"
    assert settle(home) == []


def test_a_run_that_never_takes_its_first_step_is_cancelled_and_the_next_may_begin(home: Settings) -> None:
    runs = Runs(home)
    row = new_decision(home)
    stuck = run_in(states.Pending())
    assert settle(home) == []  # while it may still begin, a second run would only be cancelled
    told = settle(home, now=time.time() + GRACE_S + 5)
    assert "was stuck before its first step and is cancelled" in told[0]
    assert told[1:] == [f"decision {row.decision} is announced"]
    names = {str(run.id): run.state_name for run in runs.all()}
    assert names[stuck] == "Cancelled"
