"""The model registry: versions with their lineage, and the aliases that say which of them serves.

In go weights, figures and tags of a trained model; out come numbered versions, each a folder with
`weights.safetensors` and what else was registered with it. No pickle is written or read anywhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from filelock import FileLock

from models.errors import BadInput, Missing
from models.images import Images
from pipelines import packing
from pipelines.packing import lay_out
from pipelines.settings import Settings
from pipelines.tracking import KEY, connection, experiment_id

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER, FALLBACK = "champion", "challenger", "fallback"
STEP = "fedloop.step"
"""The tag that says where a version stands on its way to serving: a step of `monitoring/moves.py`."""

T = TypeVar("T")

_DATA = "data"
_REQUIREMENTS = ("torch", "safetensors", "numpy", "pandas", "pillow", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Version:
    """A registered version. reused: register() found it under the key instead of making it."""

    number: int
    tags: dict[str, str]
    created_at: float
    run_id: str | None
    reused: bool = False


def register(
    settings: Settings,
    *,
    parameters: Mapping[str, torch.Tensor],
    key: str,
    tags: Mapping[str, str],
    figures: Mapping[str, float],
    summary: Path | None,
    example: Images,
    run_id: str,
    extra_files: Sequence[Path] = (),
) -> Version:
    """Register a model under alias `challenger`, or find the version that has the same key.

    key: names the model's inputs by content (letters, digits, . _ : -). figures: become metrics of the model and tags
    of the version. example: a few images [n, h, w, c], shown on the version's page. run_id: the MLflow run that
    trained it.

    Raises:
        BadInput: the parameters do not fit the task's model, or two files have one name.
        Missing: the registry does not answer.
    """
    if not re.fullmatch(r"[\w.:-]+", key):
        raise BadInput(f"the key {key!r} may hold letters, digits, dots, colons, _ and - only")
    settings.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(settings.folder / "register.lock"), connection(settings) as client:
        if (found := _by_key(client, settings, key)) is not None:
            champion = _by_alias(client, settings, CHAMPION)
            if champion is None or champion.number != found.number:
                client.set_registered_model_alias(settings.model_name, CHALLENGER, str(found.number))
            return replace(found, reused=True)
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / _DATA
            lay_out(data, settings, parameters, key, summary, extra_files)
            made = _create(client, settings, data, Path(folder) / "model", key, tags, figures, example, run_id)
        client.set_registered_model_alias(settings.model_name, CHALLENGER, str(made.number))
        return made


def by_alias(settings: Settings, alias: str) -> Version | None:
    """The version that has the alias, or None."""
    with connection(settings) as client:
        return _by_alias(client, settings, alias)


def version(settings: Settings, number: int) -> Version:
    """One version. Raises Missing when there is none of that number."""
    for candidate in versions(settings):
        if candidate.number == number:
            return candidate
    raise Missing(f"the registry has no version {number} of {settings.model_name!r}; `fedloop status` lists them")


def versions(settings: Settings) -> list[Version]:
    """All versions, oldest first. They do not know their aliases: ask by_alias."""
    with connection(settings) as client:
        found = _search(client, f"name = '{settings.model_name}'")
    return sorted(found, key=lambda each: each.number)


def fetch(settings: Settings, number: int) -> Path:
    """A local folder with the version's files; downloaded once, and again where a file is not what it was.

    Raises:
        Missing: there is no such version, or the registry does not answer.
    """
    folder = settings.folder / "models" / str(number)
    with connection(settings) as client:
        origin = _unless_missing(lambda: client.get_model_version_download_uri(settings.model_name, str(number)))
        if origin is None:
            raise Missing(f"the registry has no version {number} of {settings.model_name!r}")
        # A registry that was thrown away counts from 1 again: the number alone does not name the weights.
        if packing.intact(folder, origin):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / "fetch.lock"), tempfile.TemporaryDirectory(dir=folder.parent) as part:
            from mlflow.artifacts import download_artifacts

            there_is = download_artifacts(artifact_uri=origin, dst_path=part, tracking_uri=settings.registry_uri)
            data = Path(there_is) / _DATA / _DATA
            packing.seal(data, origin)
            shutil.rmtree(folder, ignore_errors=True)
            data.rename(folder)
    return folder


def set_alias(settings: Settings, alias: str, number: int) -> None:
    version(settings, number)
    with connection(settings) as client:
        client.set_registered_model_alias(settings.model_name, alias, str(number))


def drop_alias(settings: Settings, alias: str) -> None:
    """Take the alias away; nothing happens when no version has it."""
    with connection(settings) as client:
        _unless_missing(lambda: client.delete_registered_model_alias(settings.model_name, alias))


def tag(settings: Settings, number: int, tags: Mapping[str, str]) -> None:
    with connection(settings) as client:
        for name, value in tags.items():
            client.set_model_version_tag(settings.model_name, str(number), name, value)


def _create(
    client: MlflowClient,
    settings: Settings,
    data: Path,
    folder: Path,
    key: str,
    tags: Mapping[str, str],
    figures: Mapping[str, float],
    example: Images,
    run_id: str,
) -> Version:
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import Schema, TensorSpec

    name, task = settings.model_name, settings.task
    experiment = experiment_id(client, settings)
    logged = client.create_logged_model(
        experiment, name=name, source_run_id=run_id, tags={KEY: key}, model_type="fedloop"
    )
    float32 = np.dtype("float32")
    save_model(
        str(folder),
        loader_module=packing.__name__,
        data_path=str(data),
        mlflow_model=Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            run_id=run_id,
            model_id=logged.model_id,
        ),
        signature=ModelSignature(
            inputs=Schema([TensorSpec(float32, (-1, *task.input.shape))]),
            outputs=Schema([TensorSpec(float32, (-1, len(task.classes)))]),
        ),
        input_example=example.astype(np.float32) / 255.0,
        # Named here because MLflow would find them out by a process of its own, in 14 s.
        pip_requirements=[f"{each}=={installed(each).partition('+')[0]}" for each in _REQUIREMENTS],
    )
    client.log_model_artifacts(logged.model_id, str(folder))
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    now = int(time.time() * 1000)
    metrics = [Metric(k, float(v), now, 0, model_id=logged.model_id, run_id=run_id) for k, v in figures.items()]
    client.log_batch(run_id, metrics=metrics)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    every = {k: str(v) for k, v in tags.items()} | {k: f"{v:.6g}" for k, v in figures.items()} | {KEY: key}
    with _default_address(settings.registry_uri):
        made = client.create_model_version(
            name, f"models:/{logged.model_id}", run_id, tags=every, model_id=logged.model_id, await_creation_for=30
        )
    client.set_logged_model_tags(
        logged.model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": int(made.version)}])}
    )
    return _version(made)


def _by_key(client: MlflowClient, settings: Settings, key: str) -> Version | None:
    found = _search(client, f"name = '{settings.model_name}' and tags.`{KEY}` = '{key}'")
    return max(found, key=lambda each: each.number, default=None)


def _by_alias(client: MlflowClient, settings: Settings, alias: str) -> Version | None:
    found = _unless_missing(lambda: client.get_model_version_by_alias(settings.model_name, alias))
    return None if found is None else _version(found)


def _search(client: MlflowClient, condition: str) -> list[Version]:
    found: list[Version] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(condition, max_results=1000, page_token=token)
        found += [_version(each) for each in page]
        if not (token := page.token):
            return found


def _version(found: ModelVersion) -> Version:
    return Version(int(found.version), dict(found.tags), found.creation_timestamp / 1000.0, found.run_id)


def _unless_missing(ask: Callable[[], T]) -> T | None:
    """The answer; None where MLflow says, in one of its ways, that there is no such model, version or alias."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        # A missing alias of an existing model is an INVALID_PARAMETER_VALUE.
        missing_alias = error.error_code == "INVALID_PARAMETER_VALUE" and "alias" in str(error)
        if error.error_code != "RESOURCE_DOES_NOT_EXIST" and not missing_alias:
            raise
        return None


@contextmanager
def _default_address(uri: str) -> Iterator[None]:
    """MLflow's database store resolves `models:/<id>` through the default address, not through its own."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI")
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
