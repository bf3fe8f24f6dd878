"""The reference: any model without cross-example state, by autograd, one site after the other.

Weights and gradients are views into flat vectors and no optimizer object is made, so a site costs no allocation and a
step is a handful of vector operations beside the model's own.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from pipelines.federated.kernels.descent import bare, descend, shares
from pipelines.federated.kernels.packing import Packing
from pipelines.federated.kernels.rows import gather, widths
from pipelines.federated.kernels.scratch import Scratch
from pipelines.federated.layout import Layout
from pipelines.federated.loss import example_losses
from pipelines.federated.steps import Steps
from pipelines.federated.work import LocalWork


def lone_chunk(size: int) -> int:
    """Sites at a time for kernels that take them one by one: their updates are held, some 64 MB of them at most."""
    return max(1, min(32, 2**24 // max(size, 1)))


class Plain:
    """model: copied, so that the caller's stays as it is; dtype: of the computation, the weights are float32."""

    together = False

    def __init__(
        self, model: nn.Module, layout: Layout, channels_last: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        self.name = "plain" + ("-channels-last" if channels_last else "") + ("" if dtype == torch.float32 else "-bf16")
        self.chunk = lone_chunk(layout.size)
        self._packing = Packing(layout, channels_last)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._dtype = dtype
        self._scratch = Scratch()
        self._w = torch.zeros(layout.size)
        self._gradient = torch.zeros(layout.size)
        self._computed_with = self._w if dtype == torch.float32 else torch.zeros(layout.size, dtype=dtype)
        self._model = copy.deepcopy(model).train()
        own = dict(self._model.named_parameters())
        for name, view in self._packing.views(self._computed_with).items():
            own[name].data = view
        learned = [name for name in layout.names if own[name].requires_grad]
        self._parameters = [own[name] for name in learned]
        self._steppable = [self._packing.views(self._w)[name] for name in learned]
        self._gradients = [self._packing.views(self._gradient)[name] for name in learned]

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
        sites, size = len(steps), self._w.numel()
        pack, scratch, w = self._packing.pack, self._scratch, self._w
        deltas, losses = scratch("deltas", (sites, size)), torch.zeros(sites)
        own_start, velocity = scratch("start", (size,)), scratch("velocity", (size,)) if work.momentum else None
        share = None if steps.weight is None else shares(steps.weight)
        real = widths(steps)
        pull = None if anchor is None else pack(anchor, scratch("anchor", (size,)))
        is_bare = bare(work, correction)
        for site in range(sites):
            if site == 0 or start.dim() == 2:
                pack(start[site] if start.dim() == 2 else start, own_start)
            w.copy_(own_start)
            if velocity is not None:
                velocity.zero_()
            turn = None if correction is None else pack(correction[site], scratch("correction", (size,)))
            for step in range(int(steps.steps[site])):
                index = steps.index[site, step, : real[site, step]]
                loss, gradients = self._backward(
                    gather(steps.x, index, self._dtype, scratch),
                    steps.y[index],
                    None if share is None else share[site, step, : real[site, step]],
                )
                if is_bare and self._computed_with is w:
                    torch._foreach_add_(self._steppable, gradients, alpha=-work.learning_rate)
                else:
                    torch._foreach_copy_(self._gradients, gradients)
                    descend(w, self._gradient, velocity, work, turn, own_start if pull is None else pull)
                if measure_loss:
                    losses[site] += loss
            self._packing.unpack(w.sub_(own_start), deltas[site])
        return deltas, losses.div_(torch.from_numpy(steps.steps).clamp_min(1))

    def _backward(
        self, x: torch.Tensor, y: torch.Tensor, share: torch.Tensor | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Loss and gradients of one batch at the present weights."""
        if self._computed_with is not self._w:
            self._computed_with.copy_(self._w)
        if x.dim() == 4:
            x = x.contiguous(memory_format=self._memory_format)
        with torch.enable_grad():
            each = example_losses(self._model(x).float(), y)
            loss = each.mean() if share is None else each.dot(share)
        return loss.detach(), torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)


def plain(
    model: nn.Module, layout: Layout, *, channels_last: bool = False, dtype: torch.dtype = torch.float32
) -> Plain:
    return Plain(model, layout, channels_last, dtype)
