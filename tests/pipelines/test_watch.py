from __future__ import annotations

import copy
import json
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa
from camera_traffic import START, CameraTraffic
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from monitoring import alarm
from monitoring.dashboard import Dashboard
from monitoring.database import WINDOWS
from monitoring.drift import DriftPolicy
from monitoring.traffic import TrafficLog
from pipelines import watch
from pipelines.settings import Settings, load_settings

LATER = START + 1e6
POLICY = DriftPolicy(window_rows=100, minimum_rows=50, site_minimum_rows=15, replicates=200)


class House:
    """Live traffic of five sites over a real log, and settings whose windows are small."""

    def __init__(self, settings: Settings, traffic: CameraTraffic) -> None:
        self.settings = settings.model_copy(update={"drift": POLICY})
        self.traffic = copy.deepcopy(traffic)  # its generator goes on from here
        self.traffic.install(self.settings)
        self.log = TrafficLog.open(self.settings.database_url, self.settings.images)
        self.board = Dashboard(self.settings.dashboard, self.settings.model_name)

    def look(self, limit: int = 20) -> list[watch.WindowReport]:
        return watch.look(self.settings, limit, now=LATER)

    def snapshots(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.board.snapshots.glob("*.json")}


@pytest.fixture(scope="module")
def traffic() -> CameraTraffic:
    return CameraTraffic()


@pytest.fixture
def house(settings: Settings, traffic: CameraTraffic) -> House:
    return House(settings, traffic)


def test_dark_traffic_raises_one_alarm_at_its_second_window_and_stable_traffic_none(house: House) -> None:
    house.traffic.send(house.log, 200)
    house.traffic.send(house.log, 300, dark=0.7)
    reports = house.look()
    assert [report.odd for report in reports] == [False, False, True, True, True]
    assert [report.decision is not None for report in reports] == [False, False, False, True, False]
    (decision,) = alarm.decisions(house.log.engine)
    assert decision.evidence["windows"] == [3, 4]
    assert (decision.evidence["from_seq"], decision.evidence["to_seq"]) == (201, 401)
    assert set(decision.evidence["columns"]) >= {"brightness", "contrast"}
    assert decision.evidence["label_budget"] == house.settings.labels.budget_share
    assert "in windows 3-4" in decision.sentence


def test_darkness_at_one_site_is_seen_and_named(house: House) -> None:
    house.traffic.send(house.log, 200, dark=0.7, at_sites=["site-4"])
    house.look()
    (decision,) = alarm.decisions(house.log.engine)
    assert decision.evidence["sites"] == ["site-4"]
    assert "at site-4 in windows" in decision.sentence


def test_a_look_that_died_between_report_and_row_is_repeated_and_shows_nothing_twice(house: House) -> None:
    house.traffic.send(house.log, 100, dark=0.7)
    (first,) = house.look()
    shown = house.snapshots()
    with house.log.engine.begin() as connection:  # what a kill between the two leaves behind
        connection.execute(sa.delete(WINDOWS))
    (again,) = house.look()
    assert (again.from_seq, again.to_seq, again.evidence) == (first.from_seq, first.to_seq, first.evidence)
    assert set(house.snapshots()) == set(shown)
    assert house.look() == []


def test_catching_up_in_small_looks_gives_the_same_windows_as_one_look(tmp_path: Path, traffic: CameraTraffic) -> None:
    found = []
    for name, limit in (("one", 20), ("many", 1)):
        house = House(load_settings(home=tmp_path / name), traffic)
        house.traffic.send(house.log, 220)
        while reports := house.look(limit):
            assert len(reports) <= limit
        found.append(alarm.windows(house.log.engine))
    pd.testing.assert_frame_equal(*found)
    assert list(found[0]["from_seq"]) == [1, 101]
    assert list(found[0]["to_seq"]) == [101, 201]


def test_a_look_that_draws_nothing_finds_and_decides_the_same(tmp_path: Path, traffic: CameraTraffic) -> None:
    found, decided = [], []
    for draw in (True, False):
        house = House(load_settings(home=tmp_path / str(draw)), traffic)
        house.traffic.send(house.log, 200, dark=0.7)
        watch.look(house.settings, now=LATER, draw=draw)
        assert bool(house.snapshots()) == draw
        found.append(alarm.windows(house.log.engine))
        decided.append([(one.cause, one.evidence) for one in alarm.decisions(house.log.engine)])
    pd.testing.assert_frame_equal(*found)
    assert decided[0] == decided[1]
    assert len(decided[0]) == 1


def test_the_reference_is_that_of_the_version_that_served(house: House) -> None:
    house.traffic.install(house.settings, version=2)
    house.traffic.send(house.log, 30, version=1)
    house.traffic.send(house.log, 70, version=2)
    (report,) = house.look()
    assert report.model_version == 2
    assert report.evidence["notes"] == ["30 rows of other versions are left out"]
    assert report.evidence["rows"] == 70


def test_a_version_without_a_reference_is_passed_over_and_said_so(house: House) -> None:
    house.traffic.send(house.log, 100, version=7)
    (report,) = house.look()
    assert not report.odd
    assert "not judged" in report.sentence
    assert "version 7 has no reference of site-1, site-2" in report.sentence
    house.traffic.send(house.log, 100)
    assert "as expected" in house.look()[0].sentence


def test_lost_pictures_are_drift_of_their_own_and_lost_centroids_only_a_note(house: House) -> None:
    house.traffic.send(house.log, 100)
    for path in sorted(house.settings.images.glob("*/*.png"))[:40]:
        path.unlink()
    (report,) = house.look()
    column = report.evidence["scopes"]["overall"]["columns"]["embedding_distance"]
    assert column["what"] == "the share of missing embedding distance"
    (house.settings.folder / "models" / "1" / "summary.npz").unlink()
    house.traffic.send(house.log, 100)
    (report,) = house.look()
    assert "embedding_distance" not in report.evidence["scopes"]["overall"]["columns"]
    assert "the data summary of version 1 cannot be read" in report.sentence


def test_labels_that_come_late_are_drawn_into_their_window(house: House) -> None:
    ids = house.traffic.send(house.log, 100)
    (report,) = house.look()
    assert house.board.metadata(report.from_seq, "performance")["labels"] == "0"
    for key in ids[:60]:
        house.log.label(key, 1, "clinic", LATER)
    house.look()
    assert house.board.metadata(report.from_seq, "performance")["labels"] == "60"
    (path,) = [text for text in house.snapshots().values() if '"accuracy low of overall"' in text]
    assert json.loads(path)["name"].startswith("performance")


def test_thresholds_are_computed_once_for_a_reference(house: House) -> None:
    house.traffic.send(house.log, 200)
    house.look(limit=1)
    (kept,) = (house.settings.folder / "thresholds").glob("1-*.json")
    before = kept.stat().st_mtime_ns
    house.look(limit=1)
    assert [path.stat().st_mtime_ns for path in kept.parent.glob("1-*.json")] == [before]


def test_a_decision_is_ready_once_enough_rows_are_new(house: House) -> None:
    house.traffic.send(house.log, 200, dark=0.7)
    house.look()
    assert watch.ready(house.settings) == []
    house.traffic.send(house.log, house.settings.retrain.minimum_new_rows - 200, dark=0.7)
    (decision,) = watch.ready(house.settings)
    alarm.emitted(house.log.engine, decision.decision)
    assert watch.ready(house.settings) == []


def _windows(log: TrafficLog, policy: DriftPolicy, moments: list[float]) -> list[tuple[int, int]]:
    """The windows that looks at those moments find, in an empty record."""
    found: list[tuple[int, int]] = []
    with log.engine.begin() as connection:
        connection.execute(sa.delete(WINDOWS))
    for now in moments:
        while (rows := watch.next_window(log, policy, now)) is not None:
            span = {"from_seq": int(rows["seq"].iloc[0]), "to_seq": int(rows["seq"].iloc[-1]) + 1}
            found.append((span["from_seq"], span["to_seq"]))
            rest = {"started_at": 0.0, "ended_at": 0.0, "model_version": 1, "odd": 0, "evidence": {}}
            with log.engine.begin() as connection:
                connection.execute(sa.insert(WINDOWS).values(**span, rows=len(rows), **rest))
    return found


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory, traffic: CameraTraffic) -> tuple[TrafficLog, list[float]]:
    """A log of 300 rows: 120 quick ones, then one a minute, then quick ones again."""
    log = TrafficLog.open(f"sqlite:///{tmp_path_factory.mktemp('log') / 'log.db'}", tmp_path_factory.mktemp("images"))
    traffic = copy.deepcopy(traffic)
    traffic.send(log, 120, every_s=0.1)
    for _ in range(60):
        traffic.sent += 600 - 1
        traffic.send(log, 1, every_s=0.1)
    traffic.send(log, 120, every_s=0.1)
    return log, list(log.between(1, 10**6)["at"])


@given(st.lists(st.floats(0.0, 1.05), max_size=6))
@hypothesis_settings(max_examples=10, deadline=None)
def test_where_windows_end_depends_on_the_log_and_not_on_when_the_monitor_ran(
    gaps: tuple[TrafficLog, list[float]], moments: list[float]
) -> None:
    log, at = gaps
    policy = DriftPolicy(window_rows=100, minimum_rows=20, max_age_s=1500, lateness_s=5)
    end = at[-1] + 1e6
    looks = ([end], [at[0] + share * (at[-1] - at[0]) for share in sorted(moments)] + [end])
    at_once, found = (_windows(log, policy, run) for run in looks)
    assert found == at_once
    assert found[0] == (1, 101)  # quick rows: a full window
    assert all(20 <= high - low <= 100 for low, high in found)
    assert any(high - low < 50 for low, high in found)  # a row a minute: closed for its age
    assert [low for low, _ in found[1:]] == [high for _, high in found[:-1]]


def test_young_rows_and_too_few_rows_wait(gaps: tuple[TrafficLog, list[float]]) -> None:
    log, at = gaps
    policy = DriftPolicy(window_rows=100, minimum_rows=20, max_age_s=1500, lateness_s=5)
    assert _windows(log, policy, [at[99] + 4.9]) == []
    assert watch.next_window(log, policy, at[99] + 5.1) is not None
    assert watch.next_window(log, DriftPolicy(window_rows=1000, minimum_rows=500), 1e12) is None
