"""Augmentations that a task may name: small shifts and flips of whole batches, drawn from a given generator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import pad

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def shifts(pixels: int, flips: bool = False) -> Augment:
    """Move every second image by up to `pixels` in each direction (black comes in), and flip along both axes.

    The result maps float [n, channels, height, width] to the same shape.
    """

    def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        count, _, height, width = x.shape
        if flips:
            for axis in (2, 3):
                flipped = torch.rand(count, generator=generator) < 0.5
                x = torch.where(flipped.view(-1, 1, 1, 1), x.flip(axis), x)
        offset = torch.randint(-pixels, pixels + 1, (count, 2), generator=generator)
        offset[torch.rand(count, generator=generator) < 0.5] = 0
        rows = (offset[:, :1] + pixels + torch.arange(height))[:, :, None]
        columns = (offset[:, 1:] + pixels + torch.arange(width))[:, None, :]
        padded = pad(x, (pixels,) * 4)
        # Indices [n, height, width] on both sides of the channel slice put the channels last.
        return padded[torch.arange(count)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)

    return augment
