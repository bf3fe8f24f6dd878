"""A fleet of devices that hold images of one pool, drawn as they are asked for: nothing is stored by device.

Which images a device holds is a hash of (seed, device), so that 10^6 devices cost no more than the pool; they share
its images. Devices differ in how many they hold and in which classes, as in Hsu, Qi and Brown, "Measuring the effects
of non-identical data distribution for federated visual classification" (2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaincinv

from models.draws import Words, draw_seed, normals, seeds_of, uniforms
from models.errors import BadInput
from models.images import read_image
from models.population import Ids, Ragged
from models.task import Rows, Task

SKEW = 0.5
"""The concentration of a device's mix of classes: at 0.1 nearly one class each, at 100 nearly the pool's."""

MEAN_LOG, SPREAD_LOG, MOST = 2.85, 0.5, 60
"""Of the number of images on a device: log-normal, 20 in the mean, at least 1."""


@dataclass(frozen=True)
class Pool:
    """Labelled images sorted by class. x: uint8 [images, channels, height, width]; y: int64 [images]."""

    x: torch.Tensor
    y: torch.Tensor
    class_starts: NDArray[np.int64]
    class_sizes: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Rows, task: Task) -> Pool:
        """The labelled rows of a source, decoded; a row that nobody has labelled is left out.

        Raises:
            BadInput: an image does not fit the task, or there is none with a label.
        """
        labelled = [position for position, label in enumerate(rows.labels) if label is not None]
        if not labelled:
            raise BadInput(f"task {task.name}: no image of the pool has a label, so a fleet has nothing to learn from")
        labels = np.array([rows.labels[position] for position in labelled], dtype=np.int64)
        if labels.min() < 0 or labels.max() >= len(task.classes):
            raise BadInput(f"task {task.name}: labels go from 0 to {len(task.classes) - 1}, not to {labels.max()}")
        order = np.argsort(labels, kind="stable")
        images = np.stack([read_image(rows.images[labelled[position]], task.input) for position in order])
        sizes = np.bincount(labels, minlength=len(task.classes)).astype(np.int64)
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        return cls(x, torch.from_numpy(labels[order]), np.cumsum(sizes) - sizes, sizes)


@dataclass(frozen=True)
class ImageFleet:
    """Devices over a pool: a Population. The held-out rows are of another pool, in the device's own mix of classes."""

    size: int
    seed: int
    training: Pool
    evaluation: Pool
    skew: float = SKEW

    def __post_init__(self) -> None:
        if self.size < 1:
            raise BadInput(f"a fleet of {self.size} devices is none; give a population of at least 1")

    def counts(self, clients: Ids) -> Ids:
        bell = normals(self._seeds(clients), 1)[:, 0]
        return np.clip(np.rint(np.exp(MEAN_LOG + SPREAD_LOG * bell)), 1, MOST).astype(np.int64)

    def rows(self, clients: Ids) -> Ragged:
        """x: uint8 [rows, channels, height, width], gathered from the pool for the clients asked for."""
        return self._gather(clients, self.training, "training", self.counts(clients))

    def held_out(self, clients: Ids) -> Ragged:
        return self._gather(clients, self.evaluation, "held out", np.maximum(self.counts(clients) // 2, 4))

    def _seeds(self, clients: Ids) -> Words:
        return seeds_of(draw_seed("images", self.seed), np.asarray(clients, dtype=np.int64))

    def _gather(self, clients: Ids, pool: Pool, which: str, counts: Ids) -> Ragged:
        seeds = self._seeds(clients)
        # A Dirichlet mix: gamma numbers, by the inverse of the distribution function, over their sum.
        present = np.flatnonzero(pool.class_sizes)
        sizes, starts = pool.class_sizes[present], pool.class_starts[present]
        chance = uniforms(seeds, len(pool.class_sizes), start=1)[:, present]
        share = gammaincinv(self.skew * len(present) * sizes / sizes.sum(), chance + 2.0**-54)
        upto = np.cumsum(share, axis=1)
        width = int(counts.max(initial=0))
        drawn = uniforms(seeds_of(draw_seed(which), seeds), 2 * width).reshape(len(seeds), width, 2)
        chosen = (drawn[:, :, :1] * upto[:, None, -1:] >= upto[:, None, :-1]).sum(axis=2)
        index = starts[chosen] + (drawn[:, :, 1] * sizes[chosen]).astype(np.int64)
        wanted = torch.from_numpy(index[np.arange(width) < counts[:, None]])
        return Ragged(pool.x[wanted], pool.y[wanted], np.cumsum(counts) - counts, counts)
