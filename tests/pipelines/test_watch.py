from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from camera_traffic import START, CameraTraffic
from fresh_logs import Databases, fresh_log
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from monitoring import alarm, health
from monitoring.dashboard import Dashboard
from monitoring.database import PREDICTIONS, WINDOWS
from monitoring.drift import DriftPolicy
from monitoring.findings import MonitorPolicy
from monitoring.health import Counts, Tick
from monitoring.traffic import Prediction, TrafficLog
from pipelines import watch
from pipelines.reference import write_held_out
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

    def standing(self) -> str:
        """The page that says how things stand."""
        (text,) = [text for text in self.snapshots().values() if '"how things stand"' in text]
        return text

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


def test_darkness_at_one_site_is_seen_and_named(
    databases: Databases, settings: Settings, traffic: CameraTraffic
) -> None:
    with databases.url() as url:
        house = House(settings.model_copy(update={"log_url": url}), traffic)
        house.traffic.send(house.log, 200, dark=0.7, at_sites=["site-4"])
        house.look()
        (decision,) = alarm.decisions(house.log.engine)
        assert decision.evidence["sites"] == ["site-4"]
        assert "at site-4 in windows" in decision.sentence
        house.log.close()


def test_a_capped_lens_pages_a_person_and_starts_no_retraining(house: House) -> None:
    house.traffic.send(house.log, 200, dark=1.0, at_sites=["site-4"])
    house.look()
    (decision,) = alarm.decisions(house.log.engine)
    assert (decision.cause, decision.state, decision.evidence["sites"]) == (alarm.BROKEN, "paged", ["site-4"])
    house.traffic.send(house.log, 400, dark=1.0, at_sites=["site-4"])
    house.look()
    assert watch.ready(house.settings) == []


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
    for name in house.log.between(0, 41)["image_hash"]:
        house.log.pictures.remove_unless_young(name, young_s=0)
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


@given(st.lists(st.sampled_from([0.5, 0.5, 0.5, 300.0, -40_000.0, 40_000.0]), min_size=30, max_size=120))
@hypothesis_settings(max_examples=10, deadline=None)
def test_whatever_the_clock_does_every_row_is_in_one_window_and_none_waits_for_ever(steps: list[float]) -> None:
    """The server's clock may be set back and forward by hours between two rows; the senders' clocks say nothing."""
    policy = DriftPolicy(window_rows=50, minimum_rows=20, max_age_s=1500, lateness_s=5)
    with fresh_log() as log:
        clock, seqs = START, list[int]()
        for number, step in enumerate(steps):
            clock += step
            log.record([stamped(number, clock)])
        silent = clock + policy.max_age_s + 2 * policy.lateness_s
        found = _windows(log, policy, [clock, silent, silent + 2 * policy.lateness_s])
        for low, high in found:
            assert 20 <= high - low <= 50
            seqs += range(low, high)
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(steps) - len(seqs) < 20  # only too few for a window are left, were the last stamps ever so wrong


def stamped(number: int, clock: float) -> Prediction:
    return Prediction(
        prediction_id=str(number), request_id=None, site="site-1", at=1.0 if number % 2 else 1e12, model_version=1,
        png=b"", image_hash="0" * 32, prediction=0, confidence=1.0, probabilities=[1.0], quality=(0.0,) * 5,
        logged_at=clock,
    )  # fmt: skip


def test_a_clock_that_is_set_back_closes_windows_as_if_nothing_had_been(databases: Databases) -> None:
    policy = DriftPolicy(window_rows=50, minimum_rows=20, max_age_s=1500, lateness_s=5)
    with databases.log() as log:
        for number in range(30):  # a row a minute; after ten of them the clock is set back by ten days
            log.record([stamped(number, START + 60 * number - (864_000 if number >= 10 else 0))])
        now = START + 60 * 29 - 864_000
        assert _windows(log, policy, [now + 60]) == [(1, 28)]  # 26 minutes of the clock, one of the jump


def test_a_camera_that_hangs_is_named_in_the_window_and_calls_for_no_retraining(house: House) -> None:
    for _ in range(5):  # what is usual: this small pool of pictures repeats itself
        house.traffic.send(house.log, 100)
    house.look()
    (picture,) = set(house.log.between(1, 2)["image_hash"])
    house.traffic.send(house.log, 100)
    stuck = (PREDICTIONS.c.seq > 500) & (PREDICTIONS.c.site == "site-5")
    with house.log.engine.begin() as connection:
        connection.execute(sa.update(PREDICTIONS).where(stuck).values(image_hash=picture))
    (report,) = house.look()
    odd = {(found["monitor"], found["scope"]) for found in report.evidence["quality"] if found["odd"]}
    assert odd - {("duplicates", "overall")} == {("duplicates", "site-5")}
    assert "site-5: " in report.sentence
    assert "pictures came before" in report.sentence
    assert report.decision is None
    assert "pictures came before" in house.standing()


def test_a_silent_site_is_found_by_a_look_that_closes_no_window_and_stands_on_the_dashboard(house: House) -> None:
    house.traffic.send(house.log, 300)
    house.traffic.send(house.log, 99, only=["site-1", "site-2", "site-3", "site-4"])
    end = START + house.traffic.sent * 0.1
    assert len(watch.look(house.settings, now=end + 1)) == 3
    assert watch.silent(house.settings) == []
    patient = house.settings.model_copy(update={"monitors": MonitorPolicy(silence_floor_s=30.0, silence_rows=20)})
    assert watch.look(patient, now=end + 60) == []
    assert "site-5" in [silence.site for silence in watch.silent(patient)]
    assert "site-5 has sent nothing for" in house.standing()


def test_the_estimate_is_calibrated_by_the_gate_and_by_labels_and_doubted_in_the_dark(house: House) -> None:
    images, _, truth = house.traffic.pictures(400)
    answers = house.traffic.columns(images)
    bins, right = np.minimum((answers["confidence"] * 15).astype(int), 14), answers["prediction"] == truth
    sums = [np.bincount(bins, weights=w, minlength=15) for w in (np.ones(400), answers["confidence"], right)]
    write_held_out(house.settings, 1, [each.tolist() for each in sums])
    house.traffic.send(house.log, 200, labels=True)
    first, second = house.look()
    assert first.evidence["estimate"]["calibrated_on"] == 400
    assert second.evidence["estimate"]["calibrated_on"] == 500  # and the labels of the first window
    truly = house.log.between(101, 201)
    seen = float((truly["prediction"] == truly["label"]).mean())
    assert second.evidence["estimate"]["value"] == pytest.approx(seen, abs=0.08)
    house.traffic.send(house.log, 100, dark=0.7)
    (dark,) = house.look()
    assert "outside the reference" in dark.evidence["estimate"]["doubts"][-1]


def test_a_window_tells_how_the_service_fared_meanwhile(house: House) -> None:
    house.traffic.send(house.log, 100)
    counts = Counts(errors=1, rows=9)
    for _ in range(9):
        counts.took(0.02)
    health.record(house.log.engine, [Tick("a", 1, START + 5.0, {1: counts}), Tick("a", 2, START + 1e5, {1: counts})])
    (report,) = house.look()
    told = report.evidence["health"]
    assert (told["requests"], told["errors"], told["abstained"]) == (10.0, 0.1, 0.0)
    assert told["p99_ms"] == pytest.approx(20.0, rel=0.13)
