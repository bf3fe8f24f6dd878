"""What is installed is what was seen working together, and it really works: nothing else would catch a wrong pin."""

from __future__ import annotations

import importlib
from datetime import timedelta
from importlib import metadata

import pytest
from packaging.specifiers import SpecifierSet
from prefect.client.orchestration import get_client
from prefect.schedules import Interval
from tiny_flows import monitor
from watching import until

from flows.serve_flows import deployment
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
def test_schedules_create_runs(prefect_house: Settings) -> None:
    # With SQLAlchemy 2.1 the server starts, manual runs work, and schedules never create one.
    number = deployment(prefect_house, monitor, Interval(timedelta(hours=1))).apply()
    with get_client(sync_client=True) as client:
        runs = until(lambda: [run for run in client.read_flow_runs() if run.deployment_id == number])
    assert {run.state_name for run in runs} == {"Scheduled"}
    assert {run.auto_scheduled for run in runs} == {True}
    assert runs[0].parameters == {"task": "digits"}
