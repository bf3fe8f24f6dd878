from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from live_service import Serving, serving

from models.images import encode_png
from monitoring.health import Health, by_version
from monitoring.traffic import TrafficLog
from pipelines import release, serving_health
from pipelines.registry import Version
from pipelines.serving_health import HealthCounter
from pipelines.serving_model import ServedModel
from pipelines.settings import Settings

PNG = {"content-type": "image/png"}


def ask(served: Serving, data: bytes | None = None) -> httpx.Response:
    picture = np.random.default_rng(0).integers(0, 256, size=(8, 8, 1), dtype=np.uint8)
    body = encode_png(picture) if data is None else data
    return served.client.post("/predict/image", params={"site": "s"}, content=body, headers=PNG)


def counted(settings: Settings) -> dict[int | None, Health]:
    log = TrafficLog.open(settings.database_url, settings.images)
    try:
        return by_version(log.engine, 0.0, time.time())
    finally:
        log.close()


def test_every_answer_error_and_refusal_is_counted_under_the_version_that_gave_it(
    settings: Settings, register: Callable[..., Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = register(1), register(2)
    with serving(settings) as served:
        assert ask(served).status_code == 503  # no champion yet
        release.promote(settings, first.number, "test")
        served.ready(first.number)
        answers = [ask(served) for _ in range(5)]
        assert {answer.headers["fedloop-version"] for answer in answers} == {str(first.number)}
        assert ask(served, b"no picture").status_code == 422
        release.promote(settings, second.number, "test")
        served.ready(second.number)
        assert ask(served).status_code == 200

        def fails(
            model: ServedModel, images: np.ndarray
        ) -> np.ndarray:  # a model that passed its probes and then fails
            raise RuntimeError("a layer is missing")

        monkeypatch.setattr(ServedModel, "predict", fails)
        failed = ask(served)
        assert (failed.status_code, failed.headers["fedloop-version"]) == (500, str(second.number))
    found = counted(settings)  # written when the service ended
    one, two = found[first.number].counts, found[second.number].counts
    assert (one.answered, one.rows, one.refused, one.errors) == (5, 5, 1, 0)
    assert (two.answered, two.rows, two.refused, two.errors) == (1, 1, 0, 1)
    assert found[0].counts.unavailable == 1
    assert 0.0 < found[None].latency_s(0.5) < 30.0


def test_a_running_service_writes_its_counters_every_few_seconds(
    settings: Settings, register: Callable[..., Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_health, "TICK_S", 0.1)
    release.promote(settings, register(1).number, "test")
    with serving(settings) as served:
        served.ready()
        ask(served)
        deadline = time.monotonic() + 20
        while not counted(settings):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_counters_wait_while_the_database_is_down_and_are_then_written_once(tmp_path: Path) -> None:
    log = TrafficLog.open(f"sqlite:///{tmp_path / 'log.db'}", tmp_path / "images")
    counter = HealthCounter(log.engine, lambda: 3)
    with log.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE service_health RENAME TO gone"))
    for _ in range(2):
        counter.answered("/predict", 200, 0.01, None)
        with pytest.raises(sa.exc.OperationalError):
            counter.flush()
    with log.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE gone RENAME TO service_health"))
    counter.flush()
    counter.flush()
    assert by_version(log.engine, 0.0, time.time())[3].counts.answered == 2
