from __future__ import annotations

import hashlib
import socket
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from live_service import serving

from models.camera import LOW_LIGHT, Camera
from models.digits import TASK
from models.errors import BadInput
from models.images import decode_png
from models.quality import quality
from models.task import Rows
from monitoring.traffic import TrafficLog
from pipelines import release, replay
from pipelines.registry import Version
from pipelines.replay import Capture, captures
from pipelines.settings import Settings

PLAIN = Camera((1.0,), 0.0)
SITES = {"site-1": PLAIN, "site-2": Camera((0.9,), 0.3)}
EVEN = dict.fromkeys(SITES, np.ones(10))


@pytest.fixture(scope="module")
def live() -> Rows:
    return TASK.load().live


def brightness(some: list[Capture]) -> float:
    images = np.stack([decode_png(capture.png, TASK.input) for capture in some])
    return float(quality(images)["brightness"].mean())


def test_the_same_arguments_give_the_same_captures_bit_by_bit(live: Rows) -> None:
    first = captures(TASK, live, SITES, EVEN, count=60, seed=3, start_at=9.0, tag="a")
    assert first == captures(TASK, live, SITES, EVEN, count=60, seed=3, start_at=9.0, tag="a")
    assert first != captures(TASK, live, SITES, EVEN, count=60, seed=4, start_at=9.0, tag="a")
    other_tag = captures(TASK, live, SITES, EVEN, count=60, seed=3, start_at=9.0, tag="b")
    assert {capture.png for capture in first}.isdisjoint(capture.png for capture in other_tag)
    assert [capture.at for capture in first] == sorted(capture.at for capture in first)
    assert first[0].at == 9.0


def test_no_two_captures_are_the_same_picture_and_request_ids_are_unique(live: Rows) -> None:
    one = live.take(np.array([0]))
    some = captures(TASK, one, SITES, EVEN, count=200, seed=0, tag="a")
    assert len({capture.png for capture in some}) == 200
    assert len({capture.request_id for capture in some}) == 200
    scene = PLAIN(np.asarray(one.images[0])[None])[0].astype(int)
    seen = [decode_png(c.png, TASK.input).astype(int) for c in some if c.site == "site-1"]
    noise = np.stack([(each - scene)[(scene > 20) & (scene < 235)] for each in seen])
    assert 0.9 < noise.std() < 2.2  # grey levels


def test_each_site_shows_its_own_label_mix(live: Rows) -> None:
    mix = {"site-1": np.eye(10)[3] + np.eye(10)[4] * 3, "site-2": np.arange(10.0)}
    some = captures(TASK, live, SITES, mix, count=1500, seed=0)
    first = Counter(capture.label for capture in some if capture.site == "site-1")
    assert set(first) == {3, 4}
    assert 2.2 < first[4] / first[3] < 4.0
    second = Counter(capture.label for capture in some if capture.site == "site-2")
    assert second[0] == 0
    assert second[9] > 2 * second[2]
    assert 600 < first.total() < 900


def test_a_drift_changes_the_light_of_its_sites_and_not_the_scenes(live: Rows) -> None:
    clear = captures(TASK, live, SITES, EVEN, count=100, seed=1, tag="a")
    dark = captures(
        TASK, live, SITES, EVEN, count=100, seed=1, tag="a", corruption=LOW_LIGHT, severity=0.7, sites=["site-2"]
    )
    assert [(c.site, c.label, c.request_id) for c in clear] == [(c.site, c.label, c.request_id) for c in dark]
    assert [c.png for c in clear if c.site == "site-1"] == [c.png for c in dark if c.site == "site-1"]
    hit = [c for c in dark if c.site == "site-2"]
    assert brightness(hit) < 0.5 * brightness([c for c in clear if c.site == "site-2"])


def test_rows_without_a_label_or_that_are_no_image_are_never_drawn() -> None:
    good = np.full((8, 8, 1), 128, dtype=np.uint8)
    rows = Rows([b"junk", good, good, np.zeros((9, 9))], [1, None, 2, 1])
    some = captures(TASK, rows, SITES, EVEN, count=20, seed=0)
    assert {capture.label for capture in some} == {2}
    with pytest.raises(BadInput, match="none of the 2 rows"):
        captures(TASK, rows.take(np.array([0, 3])), SITES, EVEN, count=1, seed=0)
    with pytest.raises(BadInput, match="no image of any class"):
        captures(TASK, rows, SITES, dict.fromkeys(SITES, np.eye(10)[1]), count=1, seed=0)
    assert captures(TASK, rows, SITES, EVEN, count=0, seed=0) == []


def test_the_tally_agrees_with_the_log_and_a_fixed_share_is_labelled(
    settings: Settings, register: Callable[..., Version], live: Rows
) -> None:
    release.promote(settings, register(1).number, "first")
    some = captures(TASK, live, SITES, EVEN, count=400, seed=2, start_at=time.time(), tag="a")
    with serving(settings) as running:
        assert replay.serving_version(running.url + "1") is None
        running.ready()
        tally = replay.replay(running.url, some, concurrency=8, feedback_share=0.25)
        again = replay.replay(running.url, some[:50], feedback_share=0.25)
    assert tally.failed == {}
    assert tally.feedback_failed == again.feedback_failed == []
    assert set(tally.answered) == {capture.request_id for capture in some}
    assert {answer.version for answer in tally.answered.values()} == {1}
    chosen = [c for c in some if int(hashlib.sha256(c.png).hexdigest()[:8], 16) / 2**32 < 0.25]
    assert tally.labelled == len(chosen)
    assert 60 < len(chosen) < 140
    log = TrafficLog.open(settings.database_url, settings.images)
    assert log.missing_requests(tally.answered) == set()
    rows = log.between(0, 401).set_index("request_id")
    assert rows.loc[[c.request_id for c in chosen], "label"].tolist() == [c.label for c in chosen]
    assert rows["label"].notna().sum() == len(chosen)
    assert all(rows.loc[name, "prediction"] == answer.prediction for name, answer in tally.answered.items())
    assert [rows.loc[capture.request_id, "at"] for capture in some] == [capture.at for capture in some]
    log.close()


def test_failures_are_counted_with_their_reason_and_not_retried(live: Rows) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    some = captures(TASK, live, SITES, EVEN, count=5, seed=2)
    began = time.monotonic()
    tally = replay.replay(url, some)
    assert time.monotonic() - began < 5
    assert set(tally.failed) == {capture.request_id for capture in some}
    assert all("Connect" in reason for reason in tally.failed.values())
    assert tally.answered == {}
    assert replay.serving_version(url) is None
