"""Fixtures that several folders share: settings in a temporary home, with a registry that is migrated already."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import registry
from pipelines.settings import Settings, load_settings
from pipelines.tracking import connection

os.environ.update({"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"})
for name in [name for name in os.environ if name.startswith("FEDLOOP_") and name != "FEDLOOP_DATA"]:
    del os.environ[name]
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a model: its migrations take seconds, a copy of the file takes none."""
    settings = load_settings(home=tmp_path_factory.mktemp("registry"))
    with connection(settings) as client:
        client.search_registered_models()
    return settings.home / "mlflow" / "mlflow.db"


@pytest.fixture
def settings(tmp_path: Path, empty_registry: Path) -> Settings:
    """Settings of the digits task in an empty home of its own."""
    made = load_settings(home=tmp_path / "home", out=tmp_path / "out")
    (made.home / "mlflow").mkdir(parents=True)
    shutil.copyfile(empty_registry, made.home / "mlflow" / "mlflow.db")
    return made


@pytest.fixture
def register(settings: Settings) -> Callable[..., registry.Version]:
    """Registers an untrained model of the task whose weights depend on `seed`."""

    def make(seed: int = 0, key: str | None = None, into: Settings = settings) -> registry.Version:
        task = into.task
        generator = torch.Generator().manual_seed(seed)
        parameters = {
            name: value + 0.3 * torch.randn(value.shape, generator=generator)
            for name, value in task.build_model().state_dict().items()
        }
        return registry.register(
            into,
            parameters=parameters,
            key=key or f"seed-{seed}",
            tags={"seed": str(seed)},
            figures={"gate.accuracy": 0.5},
            summary=None,
            example=np.zeros((2, *task.input.shape), dtype=np.uint8),
        )

    return make
