"""Which processes make up the house: the command of each, where it listens and how it shows that it is well.

In come the settings, out come `Program` values and the environment they run in. Nothing is started here.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipelines.settings import Settings, load_settings

# Every process of the house carries its home in this variable, so that `down` finds it whoever started it.
MARK = "FEDLOOP_HOUSE"

# One broken snapshot makes Evidently's UI answer 500 for everything, so they are moved aside at every start.
DASHBOARD = (
    "import pathlib, sys; from monitoring.dashboard import repair; "
    "[print('moved aside, because it is broken:', path) for path in repair(pathlib.Path(sys.argv[3]))]; "
    "from evidently.cli import app; app()"
)


@dataclass(frozen=True)
class Program:
    """One supervised process.

    health: an address that answers 200 when the process is well; None: it says so in its ready file.
    after: these must be well first.
    stop_wait_s: how long it may take to end by itself before it is killed.
    """

    name: str
    title: str
    command: tuple[str, ...]
    page: str
    log: Path
    port: int | None = None
    health: str | None = None
    after: tuple[str, ...] = ()
    stop_wait_s: int = 10

    @property
    def setting(self) -> str:
        """The environment variable that moves it to another port."""
        return f"FEDLOOP_PORTS__{self.name.upper()}"


def run_folder(settings: Settings) -> Path:
    return settings.home.absolute() / "run"


def log_folder(settings: Settings) -> Path:
    return settings.home.absolute() / "logs"


def ready_file(settings: Settings) -> Path:
    """The served flows write their process id here once their deployments are registered."""
    return run_folder(settings) / "flows.ready"


def programs(settings: Settings) -> dict[str, Program]:
    """The house's processes in the order in which they start.

    MLflow's server is left out when `tracking_uri` names a server that somebody else runs.
    """
    python, host = sys.executable, settings.host
    prefect, mlflow = settings.url("prefect"), settings.url("mlflow")
    dashboard, service = settings.url("dashboard"), settings.url("service")

    def program(name: str, title: str, command: tuple[str, ...], page: str, **more: Any) -> Program:
        port = getattr(settings.ports, name, None)
        return Program(name, title, (python, *command), page, log_folder(settings) / f"{name}.log", port, **more)

    def listening(name: str) -> tuple[str, ...]:
        return ("--host", host, "--port", str(getattr(settings.ports, name)))

    found = [
        program(
            "prefect",
            "Prefect server",
            ("-m", "prefect", "server", "start", *listening("prefect")),
            f"{prefect}/dashboard",
            health=f"{prefect}/api/health",
        ),
        program(
            "mlflow",
            "MLflow server",
            # What `mlflow server` runs in a child process. Run directly it needs half the memory (0.26 GB), a third
            # of the time, and a kill -9 leaves no child behind that would hold the port. See `mlflow_server`.
            ("-m", "uvicorn", "mlflow.server.fastapi_app:app", *listening("mlflow")),
            f"{mlflow}/#/models?workflowType=machine_learning",  # it opens in its GenAI mode otherwise
            health=f"{mlflow}/health",
        ),
        program(
            "dashboard",
            "Evidently dashboard",
            ("-c", DASHBOARD, "ui", "--workspace", str(settings.dashboard), *listening("dashboard")),
            dashboard,
            health=f"{dashboard}/api/version",
        ),
        program(
            "service",
            "prediction service",
            ("-m", "pipelines.service"),
            f"{service}/model",
            health=f"{service}/healthz",
            after=("mlflow",),  # two processes that create MLflow's tables at once trip over each other
        ),
        program(
            "flows",
            "served flows",
            ("-m", "flows.serve_flows"),
            f"{prefect}/deployments",
            after=("prefect", "mlflow"),
            stop_wait_s=25,
        ),
    ]
    found += [
        program(
            f"service-{number}",
            f"prediction service, replica {number}",
            ("-m", "pipelines.service"),
            f"{service}/model",
            health=f"{service}/healthz",  # whichever replica answers: they share the port
            after=("service",),
        )
        for number in range(2, settings.service.replicas + 1)
    ]
    return {p.name: p for p in found if p.name != "mlflow" or not settings.tracking_uri.startswith("http")}


def environment(settings: Settings) -> dict[str, str]:
    """The environment of the house: it makes every process see exactly these settings."""
    local = ",".join(dict.fromkeys(["127.0.0.1", "localhost", settings.host]))
    return (
        dict(os.environ)
        | _explicit(settings)
        | settings.environment()
        | mlflow_server(settings)
        | {
            MARK: str(settings.home.absolute()),
            "PYTHONUNBUFFERED": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "NO_PROXY": ",".join(filter(None, [local, os.environ.get("NO_PROXY")])),
            "no_proxy": ",".join(filter(None, [local, os.environ.get("no_proxy")])),
        }
    )


def mlflow_server(settings: Settings) -> dict[str, str]:
    """What `mlflow server` with these settings would put into the environment of the server process."""
    return {
        "_MLFLOW_SERVER_FILE_STORE": settings.registry_uri,
        "_MLFLOW_SERVER_REGISTRY_STORE": settings.registry_uri,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(settings.artifacts),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(allowed_hosts(settings.host, settings.ports.mlflow)),
    }


def allowed_hosts(host: str, port: int) -> list[str]:
    """Every host:port that a client of MLflow may name; with any other it answers 403 "Invalid Host header"."""
    names = ["127.0.0.1", "localhost", host]
    if host in ("0.0.0.0", "::"):
        names += [a.address for card in psutil.net_if_addrs().values() for a in card if a.family.name == "AF_INET"]
        names.append(os.uname().nodename)
    return [f"{name}:{port}" for name in dict.fromkeys(names)]


def _explicit(settings: Settings) -> dict[str, str]:
    """`FEDLOOP_*` variables for the values that a child would not find by itself (given in code, not in a file)."""
    found = load_settings(settings.task_name).model_dump(mode="json")
    return _differences("FEDLOOP_", settings.model_dump(mode="json"), found)


def _differences(prefix: str, mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, str]:
    variables: dict[str, str] = {}
    for key, value in mine.items():
        name = prefix + key.upper()
        if isinstance(value, dict) and isinstance(theirs.get(key), dict):
            variables |= _differences(f"{name}__", value, theirs[key])
        elif value != theirs.get(key):
            variables[name] = value if isinstance(value, str) else json.dumps(value)
    return variables
