"""What a user sees while a real MLflow server is gone: the service answers, also one that starts only then."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_service import free_port, overwrite, process, register_untrained, serving, settings_in
from test_service import picture

from flows.programs import environment, programs
from models.images import encode_png
from monitoring.traffic import TrafficLog
from pipelines import local_copy, release
from pipelines.registry import Version
from pipelines.settings import Settings

Register = Callable[..., Version]


@contextmanager
def mlflow(settings: Settings) -> Iterator[None]:
    """The server of `make up` on the settings' own registry."""
    own = settings.model_copy(update={"tracking_uri": ""})
    program = programs(own)["mlflow"]
    with (settings.home / "mlflow.log").open("ab") as log:
        started = subprocess.Popen(program.command, env=environment(own), stdout=log, stderr=log)
        try:
            until(lambda: httpx.get(f"{settings.tracking_uri}/health").status_code == 200)
            yield
        finally:
            started.kill()
            started.wait()


def until(holds: Callable[[], Any], within_s: float = 90.0) -> Any:
    """What `holds` returns once it is true; an address where nobody listens yet is waited for."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if found := holds():
                return found
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.house
def test_without_the_registry_the_service_answers_on_and_also_after_a_restart_from_its_own_checked_copy(
    tmp_path: Path, empty_registry: Path
) -> None:
    settings = settings_in(tmp_path, empty_registry)
    settings.ports.mlflow = free_port()
    settings.tracking_uri = f"http://127.0.0.1:{settings.ports.mlflow}"
    port = free_port()
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)

    def service() -> Any:
        return process(settings, port, FEDLOOP_TRACKING_URI=settings.tracking_uri)

    def ready() -> dict[str, Any]:
        return dict(client.get("/readyz").json())

    def answers() -> int:
        said = client.post(
            "/predict/image",
            params={"site": "s"},
            content=encode_png(picture(1)),
            headers={"content-type": "image/png"},
        )
        assert said.status_code == 200, said.text
        return int(said.json()["model_version"])

    with mlflow(settings):
        release.promote(settings, register_untrained(settings).number, "first")
        running = service()
        running.__enter__()
        until(lambda: ready().get("registry") == "reachable")
        assert answers() == 1
    try:
        said = until(lambda: ready()["registry"] != "reachable" and ready())
        assert f"the model registry at {settings.tracking_uri}" in said["registry"]
        assert said["registry"].endswith("version 1, known from before, serves")
        assert answers() == 1
        assert client.get("/healthz").status_code == 200
    finally:
        running.__exit__(None, None, None)

    with service() as again:
        said = until(lambda: ready().get("status") == "ready" and ready())
        assert (said["model_version"], "known from before" in said["registry"]) == (1, True)
        assert answers() == 1
        again.kill()
        assert "version 1, known from before, serves" in again.communicate()[1]

    log = TrafficLog.open(settings.database_url, settings.images)
    assert log.count() == 3
    log.close()
    client.close()


def test_a_damaged_copy_is_not_served_and_is_fetched_anew_when_the_registry_is_back(
    settings: Settings, register: Register
) -> None:
    release.promote(settings, register(1).number, "first")
    database = settings.home / "mlflow" / "mlflow.db"
    with serving(settings) as running:
        running.ready(1)
    whole = database.read_bytes()
    overwrite(database, b"this is no database" * 1000)
    weights = settings.folder / "models" / "1" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with serving(settings) as running:
        message = until(lambda: "damaged" in (said := running.client.get("/readyz").text) and said)
        assert "the local copy of version 1" in message
        assert running.client.get("/healthz").status_code == 200
        overwrite(database, whole)
        running.ready(1)
        assert running.client.get("/readyz").json()["registry"] == "reachable"


def test_who_was_retired_does_not_come_back_from_the_disk(settings: Settings, register: Register) -> None:
    release.promote(settings, register(1).number, "first")
    with serving(settings) as running:
        running.ready(1)
        assert local_copy.recall(settings) is not None
        release.retire(settings, "over")
        until(lambda: running.client.get("/readyz").status_code == 503)
    assert local_copy.recall(settings) is None
