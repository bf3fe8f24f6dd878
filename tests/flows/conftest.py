"""One real Prefect server for the whole test session (each costs ten seconds), and a runner of flows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Prefect makes its home where this points when it is first imported.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="fedloop-test-prefect-")

from watching import until

from flows.ports import free_ports
from flows.processes import house
from flows.programs import environment, ready_file
from pipelines.settings import Settings, load_settings

HERE = Path(__file__).parent


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["PREFECT_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a home in which a Prefect server runs; this process talks to it too."""
    settings = free_ports(load_settings("digits", home=tmp_path_factory.mktemp("home"), stage="rehearsal"))
    settings.folder.mkdir(parents=True)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with house(settings, ["prefect"]), temporary_settings({PREFECT_API_URL: settings.url("prefect") + "/api"}):
        yield settings


@pytest.fixture
def runner(prefect_house: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """The tiny flows, served in a process of their own."""
    with (prefect_house.home / "tiny.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "import tiny_flows; tiny_flows.main()"],
            env=environment(prefect_house) | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    until(lambda: ready_file(prefect_house).exists() and ready_file(prefect_house).read_text() == str(process.pid))
    yield process
    process.terminate()
    process.wait(60)
