"""What a client sees, and what is logged, while the log's database is away or the disk is full."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from fresh_logs import Databases
from live_service import Serving, register_untrained, serving, settings_in
from logged_rows import held

from models.images import content_hash, encode_png
from monitoring import safety_net
from monitoring.traffic import TrafficLog
from pipelines import release, service, serving_batch
from pipelines.settings import Settings


def ask(served: Serving, number: int) -> httpx.Response:
    picture = encode_png(np.random.default_rng(number).integers(0, 256, size=(8, 8, 1), dtype=np.uint8))
    what, kind = {"site": "s", "request_id": f"r-{number}"}, {"content-type": "image/png"}
    return served.client.post("/predict/image", params=what, content=picture, headers=kind)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def log_of(served: Serving) -> str:
    return str(served.client.get("/healthz").json()["log"])


def code_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LOG_BUSY_MS", 100)
    monkeypatch.setattr(safety_net, "PATIENCE_S", 1.0)
    monkeypatch.setattr(safety_net, "RETRY_S", 0.1)


@pytest.mark.usefixtures("impatient")
def test_while_the_database_is_away_it_answers_and_says_so_and_everything_is_logged_afterwards(
    databases: Databases, settings: Settings
) -> None:
    with databases.url() as url:
        settings = settings.model_copy(update={"log_url": url})
        release.promote(settings, register_untrained(settings, 1).number, "first")
        with serving(settings) as running:
            running.ready()
            assert log_of(running) == "reachable"
            answers = [ask(running, 0)]
            with held(url):
                with ThreadPoolExecutor(8) as pool:
                    answers += list(pool.map(lambda number: ask(running, number), range(1, 40)))
                assert "away" in log_of(running)
                assert "fedloop_log_reachable 0.0" in running.client.get("/metrics").text
                assert running.client.get("/readyz").status_code == 200
                ids = [answer.json()["prediction_id"] for answer in answers]
                early = running.client.post("/feedback", json={"prediction_id": ids[30], "label": 1})
                assert early.json()["status"] == "stored"
                late = running.client.post("/feedback", json={"prediction_id": ids[0], "label": 1})
                assert (late.status_code, code_of(late), late.headers["retry-after"]) == (503, "log_unavailable", "2")
            assert [answer.status_code for answer in answers] == [200] * 40
            until(lambda: running.client.get("/healthz").json()["spool_bytes"] == 0)
            assert log_of(running) == "reachable"
            log = TrafficLog.open(url, settings.images)
            rows = log.between(0, 10**9).set_index("prediction_id")
            assert sorted(rows.index) == sorted(ids)
            assert rows["label"][ids[30]] == 1
            for answer in answers:
                assert rows["probabilities"][answer.json()["prediction_id"]] == answer.json()["probabilities"]
            log.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here: it takes root and the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.usefixtures("impatient")
def test_on_a_full_disk_what_cannot_be_logged_is_not_answered_and_what_is_answered_is_logged(
    small_disk: Path, tmp_path: Path, empty_registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_batch, "MAX_WAITING_ROWS", 8)
    settings = settings_in(tmp_path, empty_registry)
    version = register_untrained(settings, 1).number
    release.promote(settings, version, "first")
    shutil.move(settings.folder, small_disk / "digits")
    settings.folder.symlink_to(small_disk / "digits")
    answered: list[str] = []

    def send(numbers: range) -> set[str]:
        with ThreadPoolExecutor(16) as pool:
            said = list(pool.map(lambda number: ask(running, number), numbers))
        answered.extend(answer.json()["prediction_id"] for answer in said if answer.status_code == 200)
        assert all(answer.headers["retry-after"] for answer in said if answer.status_code != 200)
        return {code_of(answer) for answer in said if answer.status_code != 200}

    with serving(settings) as running:
        running.ready()
        assert send(range(5)) == set()
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(4096))
        refused: set[str] = set()
        for start in range(100, 1000, 40):  # pages that are free already take some rows
            refused |= send(range(start, start + 40))
            if "log_unavailable" in refused:
                break
        assert refused <= {"log_unavailable", "overloaded"}
        assert "log_unavailable" in refused
        filler.unlink()
        until(lambda: ask(running, 2000).status_code == 200)
        assert send(range(3000, 3005)) == set()
        until(lambda: running.client.get("/healthz").json()["spool_bytes"] == 0)
        log = TrafficLog.open(settings.database_url, settings.images)
        logged = log.between(0, 10**9)
        assert set(answered) <= set(logged["prediction_id"])
        assert logged["prediction_id"].is_unique
        for name in logged["image_hash"].unique():
            assert content_hash(log.image(name)) == name
        log.close()
