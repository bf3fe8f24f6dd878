"""A model on disk: `weights.safetensors` in a folder, never a pickle.

In goes a state dict with a few words about it, out comes the task's module with those weights. Reading a file can run
no code, and a file that does not fit the task is refused by the names and shapes that differ.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from models.errors import BadInput, Missing
from models.task import Task

WEIGHTS = "weights.safetensors"


def save(folder: Path, task_name: str, state_dict: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    """Write `folder/weights.safetensors` and return its path. A reader sees the old file or the new, never a part."""
    folder.mkdir(parents=True, exist_ok=True)
    # A copy each: safetensors refuses tensors that share memory, and tied weights are two names here.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state_dict.items()}
    data = to_bytes(tensors, metadata=dict(metadata) | {"task": task_name})
    path, part = folder / WEIGHTS, folder / f".{uuid.uuid4().hex}.part"
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata in a folder, unchecked against any task.

    Raises:
        Missing: there is no `weights.safetensors`.
        BadInput: the file is damaged.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise Missing(f"there are no weights at {path}; train and register a model first")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInput(f"{path} is not a readable safetensors file ({error}); fetch or register it again") from error


def load(folder: Path, task: Task) -> nn.Module:
    """The task's module with the weights in `folder`, in evaluation mode.

    Raises:
        Missing, BadInput: as `read`.
        BadInput: the weights are another task's, or names, shapes or types differ.
    """
    tensors, metadata = read(folder)
    path = folder / WEIGHTS
    if metadata.get("task", task.name) != task.name:
        raise BadInput(f"{path} holds a model of task {metadata['task']!r}, not of {task.name!r}")
    model = task.build_model()
    if problems := differences(model.state_dict(), tensors):
        raise BadInput(f"{path} does not fit the model of task {task.name!r}: {'; '.join(problems)}")
    model.load_state_dict(tensors)
    return model.eval()


def differences(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[str]:
    """One phrase for every name, shape or type in which two state dicts differ; empty when they fit."""

    def describe(tensor: torch.Tensor) -> str:
        return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"

    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    problems += [
        f"{name} is {describe(found[name])}, expected {describe(tensor)}"
        for name, tensor in expected.items()
        if name in found and describe(found[name]) != describe(tensor)
    ]
    return problems
