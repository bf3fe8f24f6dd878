"""MLflow's tracking store: connecting to it, and runs that survive being started twice.

In go settings and what a training says of itself; out comes an MLflow run with metrics per round, tags and files. A
run is found again by its key, and a round that is logged again after a resume is logged once.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.error import HTTPError
from urllib.request import urlopen

import sqlalchemy as sa
from filelock import FileLock

from models.errors import Missing
from pipelines.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY = "fedloop.key"
ANSWER_WITHIN_S = 3.0


@contextmanager
def connection(settings: Settings) -> Iterator[MlflowClient]:
    """A client of the store at `settings.registry_uri`; no global address is set.

    Raises:
        Missing: the store does not answer, or not as one; the message says where it was looked for.
    """
    uri = settings.registry_uri
    # Progress bars and the hundred migrations of a new database are no news to anybody.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if uri.startswith("http"):
        _ask_for_health(uri)

    from alembic.util import CommandError
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        yield MlflowClient(tracking_uri=uri, registry_uri=uri) if uri.startswith("http") else _embedded(uri)
    except (MlflowException, sa.exc.SQLAlchemyError, CommandError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise Missing(_sorry(uri, f"fails: {first}")) from error


def experiment_id(client: MlflowClient, settings: Settings) -> str:
    """The experiment of the task's runs; created at the first call."""
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(settings.model_name)) is not None:
        return str(found.experiment_id)
    # An embedded store would put artifacts into the working directory, a server knows its own place for them.
    embedded = not settings.registry_uri.startswith("http")
    place = (settings.artifacts / settings.model_name).as_uri() if embedded else None
    try:
        return str(client.create_experiment(settings.model_name, artifact_location=place))
    except MlflowException:
        if (found := client.get_experiment_by_name(settings.model_name)) is None:
            raise
        return str(found.experiment_id)  # another process was quicker


def artifact_url(settings: Settings, run_id: str, path: str) -> str:
    """Where MLflow's pages show a file of a run."""
    with connection(settings) as client:
        experiment = experiment_id(client, settings)
    return f"{settings.url('mlflow')}/#/experiments/{experiment}/runs/{run_id}/artifacts/{path}"


class Run:
    """One MLflow run, the same one whenever it is started under the same key."""

    def __init__(self, settings: Settings, run_id: str) -> None:
        self.settings = settings
        self.run_id = run_id
        self._logged: dict[str, set[int]] = {}

    @classmethod
    def start(cls, settings: Settings, name: str, key: str) -> Self:
        with connection(settings) as client:
            experiment = experiment_id(client, settings)
            found = client.search_runs([experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
            if found:
                run_id = found[0].info.run_id
                client.update_run(run_id, status="RUNNING")
            else:
                run_id = client.create_run(experiment, run_name=name, tags={KEY: key}).info.run_id
        return cls(settings, run_id)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log values of one round; a value that its round already has is left as it is."""
        from mlflow.entities import Metric

        with connection(self.settings) as client:
            now = int(time.time() * 1000)
            new = [Metric(k, float(v), now, step) for k, v in values.items() if step not in self._steps(client, k)]
            client.log_batch(self.run_id, metrics=new)
        for name in values:
            self._logged[name].add(step)

    def tags(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        with connection(self.settings) as client:
            client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in values.items()])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file with the run, in a folder there (an earlier one of the same name is replaced)."""
        with connection(self.settings) as client:
            client.log_artifact(self.run_id, str(path), folder)

    def end(self) -> None:
        with connection(self.settings) as client:
            client.set_terminated(self.run_id)

    def _steps(self, client: MlflowClient, name: str) -> set[int]:
        if name not in self._logged:
            self._logged[name] = {metric.step for metric in client.get_metric_history(self.run_id, name)}
        return self._logged[name]


def _embedded(uri: str) -> MlflowClient:
    """A client of a database. The first one creates the tables, so processes that start together take turns."""
    from mlflow import MlflowClient

    url = sa.make_url(uri)
    if url.get_backend_name() != "sqlite" or not url.database:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    folder = Path(url.database).parent
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "mlflow.lock", timeout=120):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _ask_for_health(uri: str) -> None:
    """MLflow's own client would try for minutes."""
    try:
        with urlopen(uri.rstrip("/") + "/health", timeout=ANSWER_WITHIN_S):
            return
    except HTTPError as error:
        raise Missing(_sorry(uri, f"answers {error.code} {error.reason}")) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise Missing(_sorry(uri, f"does not answer ({reason})")) from error


def _sorry(uri: str, what: str) -> str:
    shown = sa.make_url(uri).render_as_string(hide_password=True)
    return f"the model registry at {shown} {what}; start it with `make up`, or check tracking_uri in the settings"
