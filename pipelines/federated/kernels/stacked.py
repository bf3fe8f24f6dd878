"""Any model without cross-example state, many sites in one step: torch.func.vmap over the stacked weights.

It pays for tiny models, where the price of a step is the number of calls and not the arithmetic.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.func import functional_call, grad_and_value, vmap

from pipelines.federated.kernels.descent import descend
from pipelines.federated.kernels.lockstep import lockstep
from pipelines.federated.kernels.rows import gather
from pipelines.federated.kernels.scratch import Scratch
from pipelines.federated.layout import Layout
from pipelines.federated.loss import example_losses
from pipelines.federated.steps import Steps
from pipelines.federated.work import LocalWork


class Stacked:
    """The weights of all sites are the rows of one matrix [sites, size]."""

    together = True

    def __init__(self, model: nn.Module, layout: Layout, chunk: int = 64) -> None:
        self.name, self.chunk = f"stacked-{chunk}", chunk
        self._model, self._layout = copy.deepcopy(model).train(), layout
        self._scratch = Scratch()
        self._step = vmap(grad_and_value(self._loss))

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
        sites, size, scratch = len(steps), self._layout.size, self._scratch
        plan = lockstep(steps)
        start = start if start.dim() == 1 else plan.sorted(start)
        correction = None if correction is None else plan.sorted(correction)
        pull = anchor if anchor is not None else start
        share = torch.full(plan.index.shape, 1 / plan.index.shape[2]) if plan.share is None else plan.share
        w, losses = scratch("w", (sites, size)).copy_(start), torch.zeros(sites)
        velocity = scratch("velocity", (sites, size)).zero_() if work.momentum else None
        for step, active in enumerate(plan.active):
            index = plan.index[:active, step]
            x = gather(steps.x, index.reshape(-1), torch.float32, scratch)
            x = x.view(*index.shape, *x.shape[1:])
            gradient, loss = self._step(w[:active], x, plan.y[:active, step], share[:active, step])
            descend(
                w[:active],
                gradient,
                None if velocity is None else velocity[:active],
                work,
                None if correction is None else correction[:active],
                pull if pull.dim() == 1 else pull[:active],
            )
            if measure_loss:
                losses[:active] += loss
        losses /= plan.sorted(torch.from_numpy(steps.steps)).clamp_min(1)
        return plan.restored(w.sub_(start)), plan.restored(losses)

    def _loss(self, flat: torch.Tensor, x: torch.Tensor, y: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        outputs = functional_call(self._model, self._layout.unflatten(flat), (x,))
        return example_losses(outputs, y).dot(share)


def stacked(model: nn.Module, layout: Layout, *, chunk: int = 64) -> Stacked:
    return Stacked(model, layout, chunk)
