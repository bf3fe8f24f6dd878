"""Logistic and softmax regression of small size, compiled: one loop over sites, steps and rows.

Where a site's weights fit the processor's first cache, a call into torch costs more than its arithmetic, and there
are some twenty calls in a step. numba's loop has none: the weights of a site stay in the cache from its first step to
its last. Numbers are float32, sums run in the order that the compiler likes best.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pipelines.federated.kernels import linear
from pipelines.federated.kernels.descent import shares
from pipelines.federated.kernels.scratch import Scratch
from pipelines.federated.layout import Layout
from pipelines.federated.steps import Steps
from pipelines.federated.work import LocalWork

LARGEST = 4096
"""Weights up to which a site's model, gradient and rows stay in a core's first cache; beyond, matrix products win."""


def able(model: nn.Module, layout: Layout) -> bool:
    return linear.able(model) and layout.size <= LARGEST


class Compiled:
    """Compiled at the first use on a machine (some seconds), and kept on disk by numba."""

    together = True

    def __init__(self, layout: Layout, chunk: int) -> None:
        self.name, self.chunk = f"compiled-{chunk}", chunk
        shapes = dict(zip(layout.names, layout.shapes, strict=True))
        self._classes = shapes[next(name for name in shapes if name.endswith("weight"))][0]
        self._biases = self._classes if len(shapes) == 2 else 0
        self._size = layout.size
        self._scratch = Scratch()

    def __call__(
        self,
        start: torch.Tensor,
        steps: Steps,
        work: LocalWork,
        *,
        correction: torch.Tensor | None = None,
        anchor: torch.Tensor | None = None,
        measure_loss: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Importing numba takes a second, which only those pay who train such a model.
        from pipelines.federated.kernels.compiled_loop import descend

        sites, x = len(steps), steps.x.flatten(1)
        pull = start if anchor is None else anchor
        out, losses = self._scratch("out", (sites, self._size)), torch.zeros(sites)
        descend(
            x.numpy(),
            np.float32(1 / 255 if x.dtype == torch.uint8 else 1.0),
            steps.y.numpy(),
            steps.index.numpy(),
            _NONE_3 if steps.weight is None else shares(steps.weight).numpy(),
            steps.steps,
            start.view(-1, self._size).numpy(),
            _NONE_2 if correction is None else correction.numpy(),
            pull.view(-1, self._size).numpy(),
            self._classes,
            self._biases,
            *(np.float32(n) for n in (work.learning_rate, work.momentum, work.clip_norm)),
            *(np.float32(n) for n in (work.proximal, work.weight_decay)),
            measure_loss,
            out.numpy(),
            losses.numpy(),
        )
        return out, losses


_NONE_3, _NONE_2 = np.zeros((0, 0, 0), np.float32), np.zeros((0, 0), np.float32)


def compiled(model: nn.Module, layout: Layout, *, chunk: int = 128) -> Compiled:
    return Compiled(layout, chunk)
