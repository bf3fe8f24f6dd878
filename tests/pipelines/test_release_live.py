"""Releases on a real service under real load: nobody's request fails, whoever answers and whatever is rolled back."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from live_service import free_port, process, register_trained, register_untrained, serving, settings_in

from models.images import encode_png
from monitoring import cases, moves
from monitoring.cases import Submission
from monitoring.database import SHADOW_PREDICTIONS
from monitoring.traffic import TrafficLog
from pipelines import registry, release, replay, steps
from pipelines.partition import plan_sites
from pipelines.promotion import Override, promote_by_hand
from pipelines.registry import CHAMPION, STEP
from pipelines.settings import ReleaseSettings, Settings


@pytest.fixture(scope="module")
def two_good(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Settings:
    """A home with two models that have learned the task, the first of them champion, and one that has not."""
    made = settings_in(tmp_path_factory.mktemp("live"), empty_registry)
    made.release = ReleaseSettings(shadow_s=0, canary_s=0, probation_s=0, shadow_rows=100, canary_rows=25)
    plan = sorted(plan_sites(made.task, made.sites, 0).cameras)
    register_trained(made, 0)
    register_trained(made, 1)
    registry.tag(made, 2, {"fedloop.cohort": '["' + '", "'.join(plan) + '"]'})
    register_untrained(made, 5)
    steps.begin(made, 1, "first")
    return made


@contextmanager
def load(settings: Settings, url: str, tag: str) -> Iterator[list[replay.Tally]]:
    """Clients that ask without a pause, gently, and tell the truth of half of the answers soon after."""
    plan, tallies, done = plan_sites(settings.task, settings.sites, 0), [], threading.Event()
    live = settings.task.load().live

    def clients() -> None:
        number = 0
        while not done.is_set():
            number += 1
            some = replay.captures(
                settings.task, live, plan.cameras, plan.label_mix, count=10, seed=number, start_at=time.time(), tag=tag
            )
            tallies.append(replay.replay(url, some, concurrency=2, feedback_share=0.5))
            done.wait(0.1)

    traffic = threading.Thread(target=clients)
    traffic.start()
    try:
        yield tallies
    finally:
        done.set()
        traffic.join()


def until(condition: Callable[[], bool], within_s: float = 240.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def failures(tallies: list[replay.Tally]) -> list[object]:
    return [x for tally in tallies for x in (*tally.failed.values(), *tally.feedback_failed)]


def test_a_good_version_comes_to_serve_through_shadow_and_canary_without_a_failed_request(two_good: Settings) -> None:
    settings = two_good
    log = TrafficLog.open(settings.database_url, settings.images)
    registry.set_alias(settings, "challenger", 2)
    with serving(settings) as running:
        running.ready(1)
        with load(settings, running.url, "steps") as tallies:
            assert "goes into shadow" in steps.begin(settings, 2, "better")
            until(lambda: running.client.get("/readyz").json()["beside"] == "version 2 (shadow)")
            for _ in range(3):
                until(lambda: bool(steps.advance(settings)))
                if moves.standing(log.engine)[2].to_step == moves.CANARY:
                    until(lambda: running.client.get("/readyz").json()["beside"] == "version 2 (canary)")
                if moves.standing(log.engine)[2].to_step == moves.CHAMPION:
                    break
            running.ready(2, within_s=120)
            until(lambda: running.client.get("/readyz").json()["beside"] == "version 1 (fallback)")
        shed = running.client.get("/metrics").text
    assert failures(tallies) == []
    assert "fedloop_shadow_shed_total 0.0" in shed
    assert [move.to_step for move in moves.history(log.engine) if move.version == 2] == ["shadow", "canary", "champion"]
    figures = moves.standing(log.engine)[2].figures
    assert figures["agreement"] > 0.8
    assert 0.2 < figures["slower"] < 5.0  # the same network, on a machine that may be busy
    rows = log.between(0, log.last_seq() + 1)
    canary, champion = [one.from_seq for one in moves.history(log.engine) if one.version == 2][1:]
    meanwhile = rows[(rows["seq"] > canary) & (rows["seq"] <= champion)]
    assert rows.loc[rows["seq"] <= canary, "model_version"].unique().tolist() == [1]
    assert meanwhile.loc[meanwhile["model_version"] == 2, "site"].nunique() == 1  # a fifth of five
    with log.engine.connect() as connection:
        beside = list(connection.execute(sa.select(SHADOW_PREDICTIONS)))
    answered = rows.set_index("prediction_id")["model_version"]
    assert {(answered[row.prediction_id], row.model_version) for row in beside} == {(1, 2), (2, 1)}
    assert Counter(row.prediction_id for row in beside).most_common(1)[0][1] == 1
    log.close()


@pytest.mark.house
def test_a_bad_version_forced_past_the_gate_is_rolled_back_within_one_window_without_a_failed_request(
    two_good: Settings,
) -> None:
    settings = two_good
    release.promote(settings, 1, "before")
    log = TrafficLog.open(settings.database_url, settings.images)
    task, live = settings.task, settings.task.load().live
    # The metric did not show it, a customer's case does, and somebody knows better.
    registry.tag(settings, 3, {"fedloop.gate_passed": "false", "fedloop.gate_metric_passed": "true"})
    with process(settings, port := free_port()):
        url = f"http://127.0.0.1:{port}"
        until(lambda: replay.serving_version(url) == 1)
        with load(settings, url, "forced") as tallies:
            until(lambda: sum(len(tally.answered) for tally in tallies) >= 50)
            cases.submit(log, [Submission(encode_png(live.images[i]), task.classes[live.labels[i]]) for i in range(12)])
            promote_by_hand(settings, 3, "", Override("Dr. No", "the vendor says so"))
            until(lambda: replay.serving_version(url) == 3)
            until(lambda: bool(steps.advance(settings)))
            until(lambda: replay.serving_version(url) == 1)
            count = log.count()
            until(lambda: log.count() > count + 30)
    assert failures(tallies) == []
    answers = [answer for tally in tallies for answer in tally.answered.values()]
    by_version = Counter(answer.version for answer in answers)
    assert set(by_version) == {1, 3}
    assert by_version[3] <= settings.drift.window_rows, by_version
    assert answers[-1].version == 1
    last = moves.standing(log.engine)[3]
    assert (last.from_step, last.to_step) == ("champion", "rolled back")
    assert last.reason.startswith("by itself: ")
    assert last.figures["gain_high"] < -settings.release.score_margin
    assert "Dr. No" in release.history(settings)[-2].reason
    assert registry.version(settings, 3).tags[STEP] == "rolled back"
    found = registry.by_alias(settings, CHAMPION)
    assert found is not None
    assert found.number == 1
    log.close()
