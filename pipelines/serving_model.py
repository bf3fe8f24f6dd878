"""A model that serves: loaded, warmed, with the version beside it and the limits beyond which it abstains.

In goes a registered version; out comes a value that never changes: another version is another value.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models import artifact
from models.errors import BadInput
from models.images import Images, to_tensor
from models.task import Task
from pipelines import packing, registry
from pipelines.abstain import Limits, limits_of
from pipelines.registry import Version
from pipelines.settings import Settings


@dataclass(frozen=True)
class Beside:
    """The version that predicts beside the champion, and the share of the sites that it answers (0: none).

    sites: those that the version was trained for, among which the share is exact, and one site at the least.
    """

    model: ServedModel
    step: str
    share: float = 0.0
    sites: tuple[str, ...] = ()

    def answers(self, site: str) -> bool:
        """Whether this site's requests are its to answer: always the same of a site and a version."""
        if not self.share:
            return False
        if site not in self.sites:
            return self._place(site) < self.share
        chosen = max(1, round(self.share * len(self.sites)))
        return site in sorted(self.sites, key=self._place)[:chosen]

    def _place(self, site: str) -> float:
        """A number in [0, 1) that belongs to the site and the version."""
        return int(sha256(f"{self.model.version.number}/{site}".encode()).hexdigest()[:8], 16) / 2**32


@dataclass(frozen=True)
class ServedModel:
    """A loaded, warmed version. since: when it began to serve. beside: of the champion, who predicts with it.

    limits: beyond which it abstains; None: it answers everything.
    """

    version: Version
    task: Task
    module: nn.Module
    since: float
    beside: Beside | None = None
    limits: Limits | None = None

    def predict(self, images: Images) -> NDArray[np.float32]:
        """Probabilities [n, classes] of images [n, height, width, channels].

        Raises:
            ArithmeticError: some are not finite.
        """
        with torch.inference_mode():
            found = np.asarray(self.module(to_tensor(images)).softmax(dim=1).numpy())
        if not np.isfinite(found).all():
            raise ArithmeticError(f"version {self.version.number} gives NaN")
        return found


def load_version(settings: Settings, version: Version, folder: Path | None = None) -> ServedModel:
    """Load and warm a version from a folder, or from the registry.

    Raises:
        BadInput: it is not for this task's input and classes, or a probe batch gives no probabilities.
        Missing: the registry does not answer.
    """
    task = settings.task
    folder = registry.fetch(settings, version.number) if folder is None else folder
    _, words = artifact.read(folder)
    for name, expected in packing.describe(task).items():
        if words.get(name, expected) != expected:
            raise BadInput(f"its {name} is {words[name]}, and this service's is {expected}")
    served = ServedModel(version, task, artifact.load(folder, task), time.time())
    noise = np.random.default_rng(0).integers(0, 256, size=(8, *task.input.shape), dtype=np.uint8)
    for probe in (noise, np.zeros_like(noise[:1]), np.full_like(noise[:1], 255)):
        try:
            answer = served.predict(probe)
        except ArithmeticError as error:
            raise BadInput("a probe batch gives NaN") from error
        if answer.shape != (len(probe), len(task.classes)):
            raise BadInput(f"a probe of {len(probe)} images gives an answer of shape {list(answer.shape)}")
    return replace(served, limits=limits_of(settings, version.number, version.tags, folder / packing.SUMMARY))
