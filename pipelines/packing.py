"""What a registered version is made of: its folder of files, and how MLflow's generic flavour loads it.

In go weights, the federated data summary and further files; out comes a folder with `weights.safetensors`, whose
metadata say which task, input and classes it is for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models import artifact
from models.errors import BadInput, Missing
from models.task import Task, find_task
from pipelines.settings import Settings

SUMMARY = "summary.npz"
"""The file of a version that holds its federated data summary."""


_SEAL = "origin.json"


class Predictor:
    """What MLflow loads as python_function: floats [n, h, w, c] in [0, 1] become probabilities [n, classes]."""

    def __init__(self, folder: Path) -> None:
        _, words = artifact.read(folder)
        self.model = artifact.load(folder, find_task(words["task_name"]))

    def predict(self, images: NDArray[np.float32], params: Mapping[str, Any] | None = None) -> NDArray[np.float32]:
        with torch.inference_mode():
            pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)).permute(0, 3, 1, 2)
            return np.asarray(self.model(pixels).softmax(dim=1).numpy(), dtype=np.float32)


def _load_pyfunc(path: str) -> Predictor:
    """MLflow finds this by its name in the module that the model names as its loader."""
    return Predictor(Path(path))


def describe(task: Task) -> dict[str, str]:
    """What a version says of its input and output, so that a service can refuse one that does not fit."""
    return {"input": json.dumps(task.input.shape), "classes": json.dumps(task.classes)}


def lay_out(
    data: Path,
    settings: Settings,
    parameters: Mapping[str, torch.Tensor],
    key: str,
    summary: Path | None,
    extra_files: Sequence[Path],
) -> None:
    """Write the files of a version into `data`, and load the weights once to see that they fit the task.

    Raises:
        BadInput: they do not fit, or two files have one name.
        Missing: a file is not there.
    """
    task = settings.task
    words = describe(task) | {"task_name": settings.task_name, "key": key}
    artifact.save(data, task.name, parameters, words)
    artifact.load(data, task)
    files = [(SUMMARY, summary)] if summary is not None else []
    for name, path in files + [(extra.name, extra) for extra in extra_files]:
        if (data / name).exists():
            raise BadInput(f"two files of the model are called {name!r}; rename one")
        if not path.is_file():
            raise Missing(f"there is no file {path} to register with the model")
        shutil.copyfile(path, data / name)


def seal(folder: Path, origin: str) -> None:
    """Note in a downloaded version's folder where it came from and what its files' checksums are."""
    (folder / _SEAL).write_text(json.dumps({"origin": origin, "files": _checksums(folder)}))


def intact(folder: Path, origin: str | None = None) -> bool:
    """Whether the folder's files are those that were sealed, and came from that origin (None: from any)."""
    try:
        sealed = json.loads((folder / _SEAL).read_text())
        return origin in (None, sealed["origin"]) and sealed["files"] == _checksums(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _checksums(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _SEAL]
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}
