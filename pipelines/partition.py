"""How one pooled public data set becomes sites that differ like hospitals: in label mix and in camera.

Only rehearsals need this; a real site brings rows of its own. The same plan shapes the live traffic of the sites.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.camera import Camera, capture, draw_camera
from models.errors import BadInput
from models.images import read_image
from models.task import Rows, Task
from pipelines.settings import SiteSettings


@dataclass(frozen=True)
class SitePlan:
    """cameras: by site; label_mix: by site, the relative weight of each class, [classes]."""

    cameras: dict[str, Camera]
    label_mix: dict[str, NDArray[np.float64]]

    @property
    def sites(self) -> list[str]:
        return sorted(self.cameras)


def plan_sites(task: Task, settings: SiteSettings, seed: int) -> SitePlan:
    """Draw the sites: their label mix by a Dirichlet (Hsu et al., 2019), their cameras within the spread."""
    rng = np.random.default_rng([seed, 1])
    names = [f"site-{i + 1}" for i in range(settings.count)]
    mix = rng.dirichlet(np.full(len(names), settings.label_mix_alpha), size=len(task.classes)).T
    # Every site sees some of every class: a hospital without a single positive could not be judged.
    mix = 0.8 * mix + 0.2 / len(names)
    cameras = {name: draw_camera(rng, task.input.channels, settings.camera_spread) for name in names}
    return SitePlan(cameras, {name: mix[i] for i, name in enumerate(names)})


def divide(rows: Rows, plan: SitePlan, task: Task, seed: int) -> dict[str, Rows]:
    """Each row goes to one site, drawn by the sites' weights for its label, and is seen through that site's camera.

    Rows that are no image of the task's go through as they are: refusing them is the ingest's business.
    """
    rng = np.random.default_rng([seed, 2])
    weights = np.stack([plan.label_mix[name] for name in plan.sites])
    uniform = np.full(len(plan.sites), 1.0 / len(plan.sites))
    owner = np.empty(len(rows), dtype=np.int64)
    for index, label in enumerate(rows.labels):
        known = isinstance(label, int | np.integer) and 0 <= label < weights.shape[1]
        share = weights[:, label] / weights[:, label].sum() if known else uniform
        owner[index] = rng.choice(len(plan.sites), p=share)
    divided = {}
    for position, name in enumerate(plan.sites):
        own = rows.take(np.flatnonzero(owner == position))
        noise = np.random.default_rng([seed, 3, position])
        seen = [_through(plan.cameras[name], image, task, noise) for image in own.images]
        divided[name] = Rows(seen, own.labels)
    return divided


def _through(camera: Camera, image: object, task: Task, noise: np.random.Generator) -> bytes | NDArray[np.uint8]:
    try:
        return np.asarray(capture(camera, read_image(image, task.input)[None], noise)[0])
    except BadInput:
        return image  # type: ignore[return-value]
