"""The log's limits over a whole house: what goes, what the loop still needs, and what is said of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import sqlalchemy as sa
from fresh_logs import Databases
from logged_rows import held, prediction
from typer.testing import CliRunner

from flows.cli import app
from monitoring import alarm, safety_net
from monitoring.database import WINDOWS
from monitoring.retention import RetentionPolicy
from monitoring.safety_net import SafetyNet
from monitoring.traffic import TrafficLog
from pipelines import upkeep
from pipelines.settings import Settings


@pytest.fixture
def house(settings: Settings) -> Settings:
    """100 windows of 10 rows, of which a retraining needs the last 30 rows; all are older than any limit in days."""
    log = TrafficLog.open(settings.database_url, settings.images)
    log.record([prediction(number % 9) for number in range(1000)])
    for path in log.images.rglob("*.png"):
        os.utime(path, (0, 0))
    rest = {"rows": 10, "started_at": 0.0, "ended_at": 0.0, "model_version": 1, "odd": 0, "evidence": {}}
    with log.engine.begin() as connection:
        spans = [{"from_seq": seq, "to_seq": seq + 10} for seq in range(1, 1001, 10)]
        connection.execute(sa.insert(WINDOWS), [span | rest for span in spans])
    log.close()
    retrain = settings.retrain.model_copy(update={"maximum_new_rows": 30, "minimum_new_rows": 10})
    return settings.model_copy(update={"log": RetentionPolicy(keep_days=1), "retrain": retrain})


def count(settings: Settings) -> int:
    log = TrafficLog.open(settings.database_url, settings.images)
    try:
        return log.count()
    finally:
        log.close()


def test_a_log_without_limits_forgets_nothing(house: Settings) -> None:
    assert upkeep.keep_within_limits(house.model_copy(update={"log": RetentionPolicy()})) == []
    assert count(house) == 1000


def test_a_pass_takes_what_is_old_and_leaves_the_windows_whose_labels_may_come(house: Settings) -> None:
    (said,) = upkeep.keep_within_limits(house, dry_run=True)
    assert said == "the log would forget 60 windows, rows 1 to 600; nothing is removed"
    assert count(house) == 1000
    assert "forgot 20 windows (200 rows, 0 pictures" in upkeep.keep_within_limits(house, most_windows=20)[0]
    assert "forgot 40 windows (400 rows" in upkeep.keep_within_limits(house)[0]
    assert upkeep.keep_within_limits(house) == []
    assert count(house) == 400


def test_an_open_decision_and_a_limit_too_small_are_said(house: Settings) -> None:
    log = TrafficLog.open(house.database_url, house.images)
    number = alarm.record(log.engine, "drift", {"from_seq": 211}, 0.0, alarm.AlarmPolicy())
    small = house.model_copy(update={"log": RetentionPolicy(keep_gb=1e-6)})
    first, over = upkeep.keep_within_limits(small)
    assert "forgot 21 windows" in first
    assert "GB over log.keep_gb; the rest is needed by windows to come, an open decision" in over
    assert number is not None
    alarm.claim(log.engine, number, "run")
    alarm.finish(log.engine, number, "done")
    assert "forgot 39 windows" in upkeep.keep_within_limits(small)[0]
    log.close()


def test_the_commands_say_what_there_is_and_what_they_did(
    house: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLOOP_HOME", str(house.home))
    monkeypatch.setenv("FEDLOOP_RETRAIN__MAXIMUM_NEW_ROWS", "30")

    def fedloop(*words: str) -> str:
        said = CliRunner().invoke(app, ["log", *words])
        assert said.exit_code == 0, said.output
        return " ".join(said.output.split())

    assert "1000 rows since 1970-01-12 13:46 UTC" in fedloop("status")
    assert "100 windows are reported, 0 rows wait for one" in fedloop("status")
    assert "within its limits" in fedloop("prune")
    assert "would forget 60 windows" in fedloop("prune", "--keep-days", "1", "--dry-run")
    assert "forgot 60 windows" in fedloop("prune", "--keep-days", "1")
    assert "400 rows in 1 files" in fedloop("export", str(tmp_path / "out"), "--to", "1970-01-12")
    assert "0 rows in 0 files" in fedloop("export", str(tmp_path / "out"), "--from", "1970-01-13")
    assert "of 600 rows only aggregates are left" in fedloop("status")


def test_what_a_service_left_in_the_spool_is_merged_by_hand(
    databases: Databases, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safety_net, "RETRY_S", 1000)
    with databases.url() as url:
        settings = settings.model_copy(update={"log_url": url})
        net = SafetyNet(TrafficLog.open(url, settings.images), settings.spool)
        monkeypatch.setattr(safety_net, "PATIENCE_S", 0.5)
        with held(url):
            net.record([prediction(number) for number in range(5)])
        net.close()
        monkeypatch.setattr(safety_net, "PATIENCE_S", 5.0)
        net.log.close()
        assert upkeep.merge(settings) == 5
        assert upkeep.merge(settings) == 0
        assert count(settings) == 5
