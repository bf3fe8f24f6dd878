"""Fixtures that several folders share: settings in a temporary home, with a registry that is migrated already."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from fresh_logs import Databases
from live_service import register_untrained, settings_in
from postgres import WHAT_TO_DO, Postgres, binaries, postgres

from pipelines import registry
from pipelines.settings import Settings, load_settings
from pipelines.tracking import connection

os.environ.update({"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"})
for name in [name for name in os.environ if name.startswith("FEDLOOP_") and name != "FEDLOOP_DATA"]:
    del os.environ[name]
torch.set_num_threads(1)
# Chance looks for new cases on a developer's machine; a check that guards a landing says the same twice. No test is
# decided by how long it takes.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    """A command sets the environment of its own process; here that is every test's, and it goes over all settings."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a model: its migrations take seconds, a copy of the file takes none."""
    settings = load_settings(home=tmp_path_factory.mktemp("registry"))
    with connection(settings) as client:
        client.search_registered_models()
    return settings.home / "mlflow" / "mlflow.db"


@pytest.fixture
def settings(tmp_path: Path, empty_registry: Path) -> Settings:
    return settings_in(tmp_path, empty_registry)


@pytest.fixture
def register(settings: Settings) -> Callable[..., registry.Version]:
    def make(seed: int = 0, key: str | None = None, into: Settings = settings) -> registry.Version:
        return register_untrained(into, seed, key)

    return make


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """A PostgreSQL for the whole run."""
    if binaries() is None:
        pytest.skip(WHAT_TO_DO)
    with postgres() as running:
        yield running


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest) -> Databases:
    """Where a test gets new log databases from; a test that takes this runs on both kinds."""
    return Databases(request.getfixturevalue("server").url if request.param == "postgresql" else None)
