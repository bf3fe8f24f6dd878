"""Logistic and softmax regression, compiled: one loop over sites, steps and rows.

A step of such a model is a few thousand multiplications, and a call into torch costs more than they do. numba's loop
makes none: the weights of a site stay in the processor's nearest caches from its first step to its last.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pipelines.federated.kernels.descent import bare, shares
from pipelines.federated.kernels.scratch import Scratch
from pipelines.federated.layout import Layout
from pipelines.federated.steps import Steps
from pipelines.federated.work import LocalWork


def able(model: nn.Module) -> bool:
    """nn.Linear, alone or behind nn.Flatten."""
    if type(model) is nn.Sequential and len(model) == 2 and type(model[0]) is nn.Flatten:
        return (model[0].start_dim, model[0].end_dim) == (1, -1) and able(model[1])
    return type(model) is nn.Linear and all(parameter.requires_grad for parameter in model.parameters())


class Compiled:
    """Compiled at the first use on a machine (some seconds), and kept on disk by numba."""

    together = True

    def __init__(self, layout: Layout, chunk: int) -> None:
        self.name, self.chunk = f"compiled-{chunk}", chunk
        shapes = dict(zip(layout.names, layout.shapes, strict=True))
        self._classes = shapes[next(name for name in shapes if name.endswith("weight"))][0]
        # A layout goes by name, so the bias, where there is one, stands before the weight.
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
        from pipelines.federated.kernels.compiled_loop import descend, descend_logistic

        sites, x = len(steps), steps.x.flatten(1)
        pull = start if anchor is None else anchor
        out, losses = self._scratch("out", (sites, self._size)), torch.zeros(sites)
        rows = (
            x.numpy(),
            np.float32(1 / 255 if x.dtype == torch.uint8 else 1.0),
            steps.y.numpy(),
            steps.index.numpy(),
            _NONE_3 if steps.weight is None else shares(steps.weight).numpy(),
            steps.steps,
            start.view(-1, self._size).numpy(),
        )
        rate, into = np.float32(work.learning_rate), (measure_loss, out.numpy(), losses.numpy())
        if self._classes == 1 and bare(work, correction):
            descend_logistic(*rows, self._biases, rate, *into)
            return out, losses
        descend(
            *rows,
            _NONE_2 if correction is None else correction.numpy(),
            pull.view(-1, self._size).numpy(),
            self._classes,
            self._biases,
            rate,
            *(np.float32(n) for n in (work.momentum, work.clip_norm, work.proximal, work.weight_decay)),
            *into,
        )
        return out, losses


_NONE_3, _NONE_2 = np.zeros((0, 0, 0), np.float32), np.zeros((0, 0), np.float32)


def compiled(model: nn.Module, layout: Layout, *, chunk: int = 128) -> Compiled:
    return Compiled(layout, chunk)
