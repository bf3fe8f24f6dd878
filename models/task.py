"""A task: what is learned, as one value. A task file in `models/` (or in a user's package) defines one.

The rest of fedloop knows a task only through this type, so a new task is a new file and nothing else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.camera import CORRUPTIONS, Corruption
from models.embedding import normalised_pixels
from models.errors import BadInput
from models.images import ImageInput, Images

if TYPE_CHECKING:
    import torch
    from torch import nn

BUILT_IN = ("digits", "retina", "pneumonia")


@dataclass(frozen=True)
class Rows:
    """Raw rows as a source delivers them; nothing here has been validated.

    images: each the bytes of an image file, or an array [height, width(, channels)], uint8 or floats in [0, 1].
    labels: each a class index, or None where nobody has said.
    """

    images: Sequence[bytes | NDArray[Any]]
    labels: Sequence[int | None]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise BadInput(f"a source has {len(self.images)} images and {len(self.labels)} labels; give each row both")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: NDArray[np.integer]) -> Rows:
        return Rows([self.images[i] for i in index], [self.labels[i] for i in index])


@dataclass(frozen=True)
class TaskData:
    """A task's raw rows, in four pools that share no image.

    development: becomes the sites' rows; a budget of its labels is bought.
    evaluation: the sites' own labelled rows, which judge models and never train them.
    live: replayed as traffic; what drifts and is ingested again comes from here.
    probe: replayed only to measure the model on traffic; never ingested.
    """

    development: Rows
    evaluation: Rows
    live: Rows
    probe: Rows


def penultimate(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What an nn.Sequential computes before its last layer; another kind of model answers with its outputs."""
    import torch
    from torch import nn

    body = model[:-1] if isinstance(model, nn.Sequential) else model
    return torch.as_tensor(body(images))


@dataclass(frozen=True)
class Task:
    """What is learned.

    build_model draws its initial weights from torch's generator and returns a module without cross-example state
    (no batch normalisation): then sites can be stepped together.
    augment, where given, maps (images float [n, c, h, w], generator) to images of the same shape.
    embed maps images uint8 [n, h, w, c] to features [n, d] of length 1 without any label; features gives the
    model's own [n, d] for images float [n, c, h, w], which help to cluster new rows once there is a model.
    recipe overrides the defaults of the settings of the same names, below `conf/<task>.toml`.
    """

    name: str
    input: ImageInput
    classes: tuple[str, ...]
    load: Callable[[], TaskData]
    build_model: Callable[[], nn.Module]
    metric: Literal["accuracy", "auc"] = "accuracy"
    augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None
    embed: Callable[[Images], NDArray[np.float32]] = normalised_pixels
    features: Callable[[nn.Module, torch.Tensor], torch.Tensor] = penultimate
    corruptions: Mapping[str, Corruption] = field(default_factory=lambda: dict(CORRUPTIONS))
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise BadInput(f"the task name {self.name!r} may hold letters, digits, - and _ only")
        if self.metric == "auc" and len(self.classes) != 2:
            raise BadInput(f"task {self.name}: the metric auc is for two classes, not {len(self.classes)}")


def find_task(name: str) -> Task:
    """The task of that name: a built-in one, or `package.module:ATTRIBUTE` for one of the user's own.

    Raises:
        BadInput: no such task; the message lists those there are and how to name one's own.
    """
    module_name, _, attribute = name.partition(":")
    if not attribute:
        if name not in BUILT_IN:
            raise BadInput(
                f"there is no task {name!r}; built in are {', '.join(BUILT_IN)}, "
                "and your own loads as package.module:TASK (see docs/your-own-task.md)"
            )
        module_name, attribute = f"models.{name}", "TASK"
    try:
        task = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise BadInput(
            f"task {name!r}: the module {error.name!r} cannot be imported; is its folder on PYTHONPATH?"
        ) from error
    except (TypeError, ValueError) as error:
        raise BadInput(f"task {name!r}: {module_name!r} is no module's name; write package.module:TASK") from error
    except AttributeError as error:
        raise BadInput(f"task {name!r}: the module {module_name} has no {attribute!r}") from error
    if not isinstance(task, Task):
        raise BadInput(f"task {name!r}: {attribute} is a {type(task).__name__}, not a models.task.Task")
    return task
