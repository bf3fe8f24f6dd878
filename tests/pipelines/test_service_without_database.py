"""The service restarts while the log's database is away: it answers from its copies, and what it answered comes in."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from fresh_logs import Databases
from live_service import register_untrained, serving, settings_in

from models.images import encode_png
from monitoring.traffic import TrafficLog
from pipelines import release

PNG = encode_png(np.arange(64, dtype=np.uint8).reshape(8, 8, 1))


def test_a_service_that_starts_without_its_database_answers_and_its_rows_come_in_later(
    tmp_path: Path, empty_registry: Path, databases: Databases
) -> None:
    house = settings_in(tmp_path, empty_registry)
    version = register_untrained(house).number
    headers = {"content-type": "image/png"}
    with databases.url() as url:
        there = house.model_copy(update={"log_url": url})
        release.promote(there, version, "first")
        with serving(there) as running:  # once with the database: from then on it knows that no token is asked for
            running.ready(version)
        away = house.model_copy(update={"log_url": "postgresql+psycopg://nobody@127.0.0.1:1/none"})
        with serving(away) as running:
            running.ready(version)
            assert running.client.get("/healthz").json()["log"].startswith("away")
            answers = [
                running.client.post("/predict/image", params={"site": "a"}, content=PNG, headers=headers)
                for _ in range(5)
            ]
            assert [each.status_code for each in answers] == [200] * 5
        with serving(there) as running:
            running.ready(version)
            log = TrafficLog.open(there.database_url, there.images)
            deadline = time.monotonic() + 30
            while log.count() < 5 and time.monotonic() < deadline:
                time.sleep(0.1)
            ids = log.between(1, 6)["prediction_id"].tolist()
            assert sorted(ids) == sorted(each.json()["prediction_id"] for each in answers)
            log.close()
