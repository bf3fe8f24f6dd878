"""What a simulated fleet learns, as one value: a model, and a population to train it on.

The simulator knows a task only through this type. Any image task of `models/task.py` is one as well: its images are
dealt to as many devices as are asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import nn

from models.errors import BadInput
from models.population import Population
from models.scores import Scores, class_quality, outputs_of
from models.task import BUILT_IN as IMAGE_TASKS
from models.task import Task, find_task

BUILT_IN = ("keyboard", "coupon", "heart", "mnist")

COHORT = {"epochs": 1, "batch_size": 8, "learning_rate": 0.05, "goal": 50}
"""Of an image task's recipe for sites, a fleet takes what it says about local work."""


@dataclass(frozen=True)
class FleetTask:
    """What a fleet learns.

    build_model: draws initial weights from torch's generator; no state across examples.
    population: (size, seed) -> who holds which rows.
    evaluate: quality on rows that no training sees; of `metric`, its headline, more is better.
    default_size: devices where nobody says how many.
    recipe: defaults for local work and cohort: epochs, batch_size, learning_rate, goal …
    features: the names of a table's columns, for reports; empty where they have none.
    """

    name: str
    build_model: Callable[[], nn.Module]
    population: Callable[[int, int], Population]
    evaluate: Callable[[Scores, Population], dict[str, float]]
    metric: str
    default_size: int
    recipe: Mapping[str, Any] = field(default_factory=dict)
    features: Callable[[], tuple[str, ...]] = tuple


def find_fleet_task(name: str) -> FleetTask:
    """The task of that name: built in, any image task, or `package.module:ATTRIBUTE` for one of the user's own.

    Raises:
        BadInput: no such task; the message lists those there are and how to name one's own.
    """
    module, _, attribute = name.partition(":")
    if not attribute and name in BUILT_IN:
        module, attribute = f"models.{name}", "TASK"
    if attribute:
        with suppress(ImportError, TypeError, ValueError):
            found = getattr(importlib.import_module(module), attribute, None)
            if isinstance(found, FleetTask):
                return found
    elif name not in IMAGE_TASKS:
        raise BadInput(
            f"there is no fleet task {name!r}; there are {', '.join((*BUILT_IN, *IMAGE_TASKS))}, "
            "and your own loads as package.module:TASK (a models.fleet_task.FleetTask or a models.task.Task)"
        )
    return of_images(find_task(name))


def of_images(task: Task) -> FleetTask:
    """A fleet whose devices hold images of the task's development pool, with a skew of classes (see ImageFleet).

    Models are judged on the probe; a device's held-out rows come from the evaluation pool.
    """
    from models.image_fleet import ImageFleet, Pool

    @cache
    def pools() -> tuple[Pool, Pool, Pool]:
        data = task.load()
        return Pool.of(data.development, task), Pool.of(data.evaluation, task), Pool.of(data.probe, task)

    def population(size: int, seed: int) -> Population:
        development, evaluation, _ = pools()
        return ImageFleet(size, seed, development, evaluation)

    def evaluate(scores: Scores, population: Population) -> dict[str, float]:
        probe = pools()[2]
        return class_quality(outputs_of(scores, probe.x), probe.y)

    training = task.recipe.get("training", {})
    local = {key: training[key] for key in ("epochs", "batch_size", "learning_rate", "weight_decay") if key in training}
    return FleetTask(task.name, task.build_model, population, evaluate, task.metric, 1000, {**COHORT, **local})
