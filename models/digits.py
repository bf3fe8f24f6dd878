"""Handwritten digits: scikit-learn's bundled 1,797 real 8×8 images. Always there, so this is the default task."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from torch import nn

from models.augment import shifts
from models.images import ImageInput
from models.task import Rows, Task, TaskData

POOLS = {"development": 1150, "evaluation": 120, "live": 250, "probe": 277}


def load() -> TaskData:
    """The images in four pools that share none, shuffled once and for all."""
    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 8, 8, 1) * (255.0 / 16.0)).astype(np.uint8)
    order = np.random.default_rng(20240501).permutation(len(images))
    starts = np.cumsum([0, *POOLS.values()])
    pools = {
        name: Rows(list(images[order[a:b]]), [int(y) for y in labels[order[a:b]]])
        for name, a, b in zip(POOLS, starts[:-1], starts[1:], strict=True)
    }
    return TaskData(**pools)


def build_model() -> nn.Module:
    """A small CNN of 36k parameters without cross-example state."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(48 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


TASK = Task(
    name="digits",
    input=ImageInput(channels=1, height=8, width=8),
    classes=tuple("0123456789"),
    load=load,
    build_model=build_model,
    augment=shifts(1),
)
