"""The oracle of a rehearsal: a central model of the same shape, trained on the same rows with all their true labels.

No federation could have it: it pools the rows and reads the archives. It says how much there was to regain.
"""

from __future__ import annotations

import numpy as np
import torch

from models.images import Images
from models.task import Task
from pipelines.federated.jobs import LocalWork, Parameters
from pipelines.federated.local_work import LabelledRows, batches, draw_seed, train_one
from pipelines.federated.store import SiteStore, stack_images
from pipelines.summarize import Snapshots


def train_oracle(
    task: Task,
    stores: dict[str, SiteStore],
    snapshots: Snapshots,
    work: LocalWork,
    epochs: int,
    start: Parameters,
    seed: int,
) -> Parameters:
    """Plain SGD for `epochs` over everybody's training rows with their true labels, from `start`."""
    images, labels = pooled(task, stores, snapshots)
    rows = LabelledRows(images, torch.from_numpy(labels), torch.ones(len(labels)))
    steps = batches(rows, _with_epochs(work, epochs), draw_seed("oracle", seed), task.augment)
    delta, _ = train_one(task.build_model(), start, steps, work)
    return {name: tensor + delta[name] for name, tensor in start.items()}


def pooled(task: Task, stores: dict[str, SiteStore], snapshots: Snapshots) -> tuple[Images, np.ndarray]:
    """All training rows of all sites and their labels by the archives: uint8 [n, h, w, c] and int64 [n]."""
    images, labels = [], []
    for site, own in sorted(snapshots.items()):
        rows = stores[site].rows(own, "train")
        truth = stores[site].truth(rows["row_id"])
        known = truth.notna().to_numpy()
        images.append(stack_images(rows["png"][known], task.input))
        labels.append(truth[known].to_numpy(dtype=np.int64))
    return np.concatenate(images), np.concatenate(labels)


def _with_epochs(work: LocalWork, epochs: int) -> LocalWork:
    return LocalWork(epochs, work.batch_size, work.learning_rate, work.momentum, work.weight_decay, work.clip_norm)
