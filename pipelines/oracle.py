"""The oracle of a rehearsal: a central model of the same shape, trained on the same rows with all their true labels.

No federation could have it: it pools the rows and reads the archives. It says how much there was to regain.
"""

from __future__ import annotations

import numpy as np
import torch

from models.draws import draw_seed
from models.images import Images
from models.sensor import fit_sensor
from models.task import Task
from pipelines.federated.jobs import Parameters
from pipelines.federated.kernels.plain import plain
from pipelines.federated.layout import Layout
from pipelines.federated.local_work import LabelledRows, site_steps
from pipelines.federated.plan import TrainingPlan
from pipelines.federated.store import SiteStore, stack_images
from pipelines.federated.work import LocalWork
from pipelines.summarize import Snapshots


def train_oracle(
    task: Task, stores: dict[str, SiteStore], old: Snapshots, new: Snapshots, plan: TrainingPlan, start: Parameters
) -> Parameters:
    """The plan's rounds with one site that holds everything, augmentation and fitted exposure included.

    old, new: the training snapshots before and after the drift.
    """
    first, second = _pooled(task, stores, old), _pooled(task, stores, new)
    labels = torch.from_numpy(np.concatenate([first[1], second[1]]))
    rows = LabelledRows(
        np.concatenate([first[0], second[0]]),
        labels,
        torch.ones(len(labels)),
        torch.arange(len(labels)) < len(first[1]),
        fit_sensor(first[0], second[0], plan.seed),
    )
    layout = Layout.of(start)
    kernel, weights = plain(task.build_model(), layout), layout.flatten(start)
    for number in range(1, plan.rounds + 1):
        # Twice the sites' batch: one central model sees all sites' rows, so its steps may be larger and fewer.
        work = LocalWork(**(vars(plan.work(number)) | {"batch_size": 2 * plan.strategy.work.batch_size}))
        steps = site_steps(rows, work, draw_seed("oracle", plan.seed, number), task.augment)
        deltas, _ = kernel(weights, steps, work)
        weights = weights + deltas[0]
    return layout.unflatten(weights)


def _pooled(task: Task, stores: dict[str, SiteStore], snapshots: Snapshots) -> tuple[Images, np.ndarray]:
    """All training rows of all sites and their labels by the archives: uint8 [n, h, w, c] and int64 [n]."""
    images, labels = [], []
    for site, own in sorted(snapshots.items()):
        rows = stores[site].rows(own, "train")
        truth = stores[site].truth(rows["row_id"])
        known = truth.notna().to_numpy()
        images.append(stack_images(rows["png"][known], task.input))
        labels.append(truth[known].to_numpy(dtype=np.int64))
    return np.concatenate(images), np.concatenate(labels)
