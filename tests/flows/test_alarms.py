"""`fedloop alarms`, and flows that tell people of decisions."""

from __future__ import annotations

import socket
import time

import pytest
from listening import listener
from typer.testing import CliRunner
from watching import new_decision, row_of

from flows.cli import app
from flows.monitor import monitor
from flows.notifying import tell
from monitoring import alarm
from pipelines.settings import Settings

PAGE = {"answer": "person", "severity": "critical", "sentence": "site-3 shows nothing: a broken camera", "sites": []}


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    return {"FEDLOOP_HOME": str(settings.home), "COLUMNS": "200"}


def test_a_page_is_listed_until_a_person_acknowledges_it(settings: Settings, environment: dict[str, str]) -> None:
    row = new_decision(settings, state="paged", cause=alarm.BROKEN, evidence=PAGE)

    def fedloop(*arguments: str) -> tuple[int, str]:
        said = CliRunner().invoke(app, ["alarms", *arguments], env=environment)
        return said.exit_code, said.output

    assert "site-3 shows nothing" in fedloop("list", "--waiting")[1]
    assert fedloop("ack", str(row.decision))[0] == 2  # without a reason
    assert fedloop("ack", str(row.decision), "--reason", "lens cap off again")[0] == 0
    assert row_of(settings, row.decision).state == "closed"
    assert "site-3" not in fedloop("list", "--waiting")[1]
    assert "lens cap off again" in fedloop("list")[1]
    code, said = fedloop("ack", "99", "--reason", "x")
    assert (code, "no decision 99" in said) == (2, True)


def with_alarm(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(update={"alarm": settings.alarm.model_copy(update=values)})


def test_a_receiver_that_hangs_does_not_stop_the_monitor(settings: Settings) -> None:
    new_decision(settings, state="paged", cause=alarm.BROKEN, evidence=PAGE, created_at=time.time())
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes the connection and never answers
        began = time.monotonic()
        tell(with_alarm(settings, webhook=f"http://127.0.0.1:{mute.getsockname()[1]}"), patience_s=0.5)
        assert time.monotonic() - began < 4.0


@pytest.mark.house
def test_the_monitors_run_tells_a_decision_also_through_a_prefect_block(
    prefect_house: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    new_decision(prefect_house, state="paged", cause=alarm.BROKEN, evidence=PAGE, created_at=time.time())
    with listener() as hook, listener() as block:
        CustomWebhookNotificationBlock(
            name="ops", url=f"http://{block.address}", method="POST", json_data={"text": "{{subject}} {{body}}"}
        ).save("ops", overwrite=True)
        monkeypatch.setenv("FEDLOOP_HOME", str(prefect_house.home))
        monkeypatch.setenv("FEDLOOP_STAGE", prefect_house.stage)
        monkeypatch.setenv("FEDLOOP_ALARM__WEBHOOK", f"http://{hook.address}")
        monkeypatch.setenv("FEDLOOP_ALARM__NOTIFY_BLOCK", "custom-webhook/ops")
        monitor(task=prefect_house.task_name)
        assert [each["sentence"] for each in hook.heard] == [PAGE["sentence"]]
        assert "site-3 shows nothing" in block.heard[0]["text"]
