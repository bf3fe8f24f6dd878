"""Two processes of the service on one port and one log, under load, one of them killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from live_service import register_untrained
from test_service import free_port

from monitoring.traffic import TrafficLog
from pipelines import release, replay
from pipelines.partition import plan_sites
from pipelines.settings import Settings


@pytest.mark.house
def test_two_replicas_lose_and_double_nothing_also_when_one_is_killed(settings: Settings, tmp_path: Path) -> None:
    release.promote(settings, register_untrained(settings, 1).number, "first")
    port, task = free_port(), settings.task
    url = f"http://127.0.0.1:{port}"
    plan = plan_sites(task, settings.sites, 0)
    some = replay.captures(
        task, task.load().live, plan.cameras, plan.label_mix, count=1500, seed=1, start_at=time.time(), tag="two"
    )
    more = {"FEDLOOP_PORTS__SERVICE": str(port), "FEDLOOP_SERVICE__REPLICAS": "2", "FEDLOOP_SERVICE__JSON_LOGS": "true"}
    logs = [tmp_path / f"{number}.log" for number in range(2)]
    log = TrafficLog.open(settings.database_url, settings.images)
    with ExitStack() as after:
        replicas = []
        for path in logs:
            out = after.enter_context(path.open("wb"))
            command = [sys.executable, "-m", "pipelines.service"]
            replica = subprocess.Popen(command, env=os.environ | settings.environment() | more, stderr=out)
            after.callback(replica.wait)
            after.callback(replica.kill)
            replicas.append(replica)
        deadline = time.monotonic() + 120
        while not all("version 1 serves" in path.read_text() for path in logs):
            assert time.monotonic() < deadline, [path.read_text() for path in logs]
            time.sleep(0.1)
        tally = replay.replay(url, some[:1000], concurrency=16)
        assert tally.failed == {}
        # Both have worked: an answer of each is counted at each.
        replicas[0].send_signal(signal.SIGKILL)
        replicas[0].wait()
        # What broke is sent again, all of it under its id, to the one that is left.
        rest = replay.replay(url, some, concurrency=16, patience_s=5)
        assert rest.failed == {}
    answered = tally.answered | rest.answered
    rows = log.between(0, log.last_seq() + 1)
    assert len(rows) == rows["request_id"].nunique() == 1500
    kept = dict(zip(rows["request_id"], rows["prediction_id"], strict=True))
    assert {name: answer.prediction_id for name, answer in answered.items()} == kept
    # Whoever was asked first is told the same by the other.
    assert {name: rest.answered[name] for name in tally.answered} == tally.answered
    assert '"message": "version 1 serves from now on"' in logs[0].read_text()
    log.close()
