"""A small convolutional network for 28×28 images, which several tasks build with constants of their own.

It has no state across examples, so the sites of a federation can be stepped together and one image's answer does not
depend on its neighbours.
"""

from __future__ import annotations

import torch
from torch import nn


class Standardise(nn.Module):
    """(x - mean) / spread with constants: nothing is learned, nothing is kept."""

    def __init__(self, mean: float, spread: float) -> None:
        super().__init__()
        self.mean, self.spread = mean, spread

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean) / self.spread


def small_cnn(channels: int, classes: int, mean: float, spread: float) -> nn.Sequential:
    """Some 24k parameters: logits [n, classes] of images float [n, channels, 28, 28] in [0, 1].

    mean, spread: of the training pixels. SiLU, because rectified units died for good in the noise of dark pictures.
    """
    return nn.Sequential(
        Standardise(mean, spread),
        nn.Conv2d(channels, 16, 4, stride=2, padding=1),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 3 * 3, 32),
        nn.SiLU(),
        nn.Linear(32, classes),
    )
