"""What is installed is what was seen working together, and it really works: nothing else would catch a wrong pin."""

from __future__ import annotations

import importlib
from importlib import metadata

import pytest
from packaging.specifiers import SpecifierSet
from tiny_flows import until

from pipelines.settings import Settings

PINS = {
    "evidently": "==0.7.23",
    "fastapi": ">=0.139,<0.151",
    "mlflow": "==3.17.2",
    "pandas": ">=3.0,<3.1",
    "prefect": "==3.8.8",
    "sqlalchemy": ">=2.0.45,<2.1",
    "torch": "==2.13.0",
}


@pytest.mark.parametrize("name", PINS)
def test_what_is_installed_is_what_was_seen_working(name: str) -> None:
    importlib.import_module(name)
    assert metadata.version(name).split("+")[0] in SpecifierSet(PINS[name])


def test_a_cpu_torch_brings_nothing_of_cuda() -> None:
    import torch

    if torch.version.cuda:
        pytest.skip("this machine's pip found the CUDA build of torch")
    names = [str(found.metadata["Name"]).lower() for found in metadata.distributions()]
    assert [name for name in names if name.startswith(("nvidia", "cuda", "triton"))] == []


@pytest.mark.house
def test_schedules_create_runs(served: Settings) -> None:
    # With SQLAlchemy 2.1 the server starts, manual runs work, and schedules never create one.
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        runs = until(lambda: [run for run in client.read_flow_runs() if run.auto_scheduled])
    assert {run.state_name for run in runs} <= {"Scheduled", "Pending", "Running", "Completed"}
    assert all(run.name for run in runs)
    assert runs[0].parameters == {"task": "digits"}
