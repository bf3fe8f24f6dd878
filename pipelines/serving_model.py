"""The model that serves, and who follows the registry's alias so that the champion does.

In goes the alias `champion`; out comes one reference that is replaced as a whole: a request that took it keeps its
version to the end, and the next one gets the new. A version that does not fit is refused and the old one serves on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models import artifact
from models.errors import BadInput, FedloopError, Missing
from models.images import Images, to_tensor
from models.task import Task
from pipelines import packing, registry
from pipelines.registry import CHAMPION, Version
from pipelines.settings import Settings

POLL_S = 1.0

logger = logging.getLogger("fedloop.service")


@dataclass(frozen=True)
class ServedModel:
    """A loaded, warmed version. since: when it began to serve."""

    version: Version
    task: Task
    module: nn.Module
    since: float

    def predict(self, images: Images) -> NDArray[np.float32]:
        """Probabilities [n, classes] of images [n, height, width, channels]."""
        with torch.inference_mode():
            return np.asarray(self.module(to_tensor(images)).softmax(dim=1).numpy())


def load_version(settings: Settings, version: Version) -> ServedModel:
    """Download, load and warm a version.

    Raises:
        BadInput: it is not for this task's input and classes, or a probe batch gives no probabilities.
        Missing: the registry does not answer.
    """
    task = settings.task
    folder = registry.fetch(settings, version.number)
    _, words = artifact.read(folder)
    for name, expected in packing.describe(task).items():
        if words.get(name, expected) != expected:
            raise BadInput(f"its {name} is {words[name]}, and this service's is {expected}")
    served = ServedModel(version, task, artifact.load(folder, task), time.time())
    noise = np.random.default_rng(0).integers(0, 256, size=(8, *task.input.shape), dtype=np.uint8)
    for probe in (noise, np.zeros_like(noise[:1]), np.full_like(noise[:1], 255)):
        answer = served.predict(probe)
        if answer.shape != (len(probe), len(task.classes)):
            raise BadInput(f"a probe of {len(probe)} images gives an answer of shape {list(answer.shape)}")
        if not np.isfinite(answer).all():
            raise BadInput("a probe batch gives NaN")
    return served


class ChampionWatcher:
    """Follows the alias `champion`.

    served: the model to use now, or None. problem: why the registry cannot be followed. refused: a champion that was
    not taken, and why.
    """

    def __init__(self, settings: Settings, on_swap: Callable[[ServedModel | None], None]) -> None:
        self.settings = settings
        self.served: ServedModel | None = None
        self.problem: str | None = "the champion is being looked up"
        self.refused: tuple[Version, str] | None = None
        self._on_swap = on_swap

    async def follow(self) -> None:
        """Look once a second, for ever."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(POLL_S)

    def look(self) -> None:
        """Look the alias up once and swap when it has moved. Never raises."""
        try:
            champion = registry.by_alias(self.settings, CHAMPION)
            self._take(champion)
            self._report(None)
        except FedloopError as error:
            self._report(str(error))
        except Exception as error:  # whatever the registry's client throws: the old model serves on
            self._report(f"the champion cannot be looked up: {type(error).__name__}: {error}")

    def why_none(self) -> str:
        """Why no model serves, and what to do."""
        if self.refused is not None:
            return f"the champion, version {self.refused[0].number}, was refused: {self.refused[1]}"
        return self.problem or (
            f"no version of {self.settings.model_name!r} is champion yet; "
            "train one with `make run`, or promote one with `fedloop promote`"
        )

    def _take(self, champion: Version | None) -> None:
        if champion is None:
            self.refused = None
            if self.served is not None:
                logger.warning(
                    "version %d is champion no more, and nobody is: serving stops", self.served.version.number
                )
                self._swap(None)
            return
        if self.served is not None and _same(self.served.version, champion):
            self.refused = None
            return
        if self.refused is not None and _same(self.refused[0], champion):
            return
        try:
            new = load_version(self.settings, champion)
        except Missing:
            raise
        except Exception as error:  # a broken version must not stop the one that serves
            reason = str(error) if isinstance(error, FedloopError) else f"{type(error).__name__}: {error}"
            self.refused = (champion, reason)
            kept = "nothing" if self.served is None else f"version {self.served.version.number}"
            logger.error("version %d is refused: %s; %s serves on", champion.number, reason, kept)
            return
        self.refused = None
        logger.info("version %d serves from now on", champion.number)
        self._swap(new)

    def _swap(self, new: ServedModel | None) -> None:
        self.served = new
        self._on_swap(new)

    def _report(self, problem: str | None) -> None:
        if problem != self.problem and problem is not None:
            logger.warning("%s", problem)
        self.problem = problem


def _same(a: Version, b: Version) -> bool:
    return (a.number, a.created_at) == (b.number, b.created_at)
