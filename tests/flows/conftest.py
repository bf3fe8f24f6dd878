"""One real Prefect server for the whole test session (each costs ten seconds), and flows served at it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

# Prefect makes its home where this points when it is first imported.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="fedloop-test-prefect-")

from tiny_flows import until

from flows.ports import free_ports
from flows.processes import house
from flows.programs import environment, ready_file
from pipelines.settings import Settings, load_settings

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def prefect_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a home in which a Prefect server runs; this process talks to it too."""
    settings = free_ports(load_settings("digits", home=tmp_path_factory.mktemp("home"), stage="rehearsal"))
    settings.folder.mkdir(parents=True)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with house(settings, ["prefect"]), temporary_settings({PREFECT_API_URL: settings.url("prefect") + "/api"}):
        yield settings


@pytest.fixture(scope="session")
def served(prefect_house: Settings) -> Iterator[Settings]:
    """The same, with the tiny flows served in a process of their own."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import tiny_flows; tiny_flows.main()"],
        env=environment(prefect_house) | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])},
        stdout=(prefect_house.home / "tiny.log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    until(lambda: ready_file(prefect_house).exists() and ready_file(prefect_house).read_text() == str(process.pid))
    yield prefect_house
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait(30)
    for child in children:
        if child.is_running():
            child.kill()
