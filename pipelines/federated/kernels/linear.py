"""Logistic and softmax regression of many sites at once, by hand: every operation is one over the whole chunk.

The first step of all sites uses the same weights, so it is one product; later ones are batched products over the
stacked weights. Scores lie as [classes, sites · batch]: over so few classes a softmax along the last dimension costs
thirty times more.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pipelines.federated.kernels.descent import bare, descend
from pipelines.federated.kernels.lockstep import Lockstep, lockstep
from pipelines.federated.kernels.rows import gather
from pipelines.federated.kernels.scratch import Scratch
from pipelines.federated.layout import Layout
from pipelines.federated.steps import Steps
from pipelines.federated.work import LocalWork


def able(model: nn.Module) -> bool:
    """nn.Linear, alone or behind nn.Flatten."""
    if type(model) is nn.Sequential and len(model) == 2 and type(model[0]) is nn.Flatten:
        return (model[0].start_dim, model[0].end_dim) == (1, -1) and able(model[1])
    return type(model) is nn.Linear and all(parameter.requires_grad for parameter in model.parameters())


class Linear:
    """The weights of all sites are the rows of one matrix [sites, size], whatever the order within a row."""

    def __init__(self, layout: Layout, chunk: int = 128) -> None:
        self.name, self.chunk = f"linear-{chunk}", chunk
        shapes = dict(zip(layout.names, layout.shapes, strict=True))
        self._weight = next(name for name in shapes if name.endswith("weight"))
        self._bias = next((name for name in shapes if name.endswith("bias")), None)
        self._classes, self._features = shapes[self._weight]
        self._layout, self._size = layout, layout.size
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
        sites, batch, scratch = len(steps), steps.index.shape[2], self._scratch
        plan = lockstep(steps)
        same_start = start.dim() == 1
        start = start if same_start else plan.sorted(start)
        correction = None if correction is None else plan.sorted(correction)
        w = scratch("w", (sites, self._size)).copy_(start)
        in_place = bare(work, correction)
        rate = (-work.learning_rate if in_place else 1.0) / (batch if plan.share is None else 1)
        gradient = scratch("gradient", (0 if in_place else sites, self._size))
        velocity = scratch("velocity", (sites, self._size)).zero_() if work.momentum else None
        kept = scratch("kept", plan.index.shape)
        matrices, biases = self._take_apart(w)
        for step, active in enumerate(plan.active):
            rows = plan.index[step, :active].reshape(-1)
            x = gather(steps.x, rows, torch.float32, scratch).view(active, batch, self._features)
            scores = self._scores(matrices[:active], biases, x, shared=same_start and step == 0)
            delta = self._delta(scores, plan.y[step, :active], kept[step, :active], measure_loss)
            if plan.share is not None:
                delta.mul_(plan.share[step, :active])
            if in_place:
                matrices[:active].baddbmm_(delta.transpose(0, 1), x, alpha=rate)
                biases[:, :active].add_(delta.sum(2), alpha=rate)
                continue
            by_weight = torch.bmm(delta.transpose(0, 1), x, out=scratch("by weight", matrices[:active].shape))
            self._put_together(by_weight, delta.sum(2), gradient[:active]).mul_(rate)
            descend(
                w[:active],
                gradient[:active],
                None if velocity is None else velocity[:active],
                work,
                None if correction is None else correction[:active],
                (start if same_start else start[:active]) if anchor is None else anchor,
            )
            self._take_apart(w)
        if in_place:
            self._put_together(matrices, biases, w)
        losses = self._losses(plan, kept, steps) if measure_loss else torch.zeros(sites)
        return plan.restored(w.sub_(start)), losses

    def _take_apart(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [sites, size] → weights [sites, classes, features] and biases [classes, sites] (0 where there are none).

        Copies, as batched products over views that are not contiguous fall back to one product after the other.
        """
        parts = self._layout.unflatten(w)
        matrices = self._scratch("matrices", (len(w), self._classes, self._features)).copy_(parts[self._weight])
        biases = self._scratch("biases", (self._classes, len(w)))
        return matrices, biases.zero_() if self._bias is None else biases.copy_(parts[self._bias].t())

    def _put_together(self, matrices: torch.Tensor, biases: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The way back, into rows [sites, size]."""
        parts = self._layout.unflatten(out)
        parts[self._weight].copy_(matrices)
        if self._bias is not None:
            parts[self._bias].copy_(biases.t())
        return out

    def _scores(self, matrices: torch.Tensor, biases: torch.Tensor, x: torch.Tensor, shared: bool) -> torch.Tensor:
        """[classes, sites, batch] of x [sites, batch, features]; shared: whether all sites' weights are still one."""
        sites, batch, _ = x.shape
        scores = self._scratch("scores", (self._classes, sites, batch))
        if shared:
            torch.mm(matrices[0], x.view(sites * batch, -1).t(), out=scores.view(self._classes, -1))
        else:
            by_site = self._scratch("by site", (sites, self._classes, batch))
            scores.copy_(torch.bmm(matrices, x.transpose(1, 2), out=by_site).transpose(0, 1))
        return scores.add_(biases[:, :sites, None])

    def _delta(self, scores: torch.Tensor, y: torch.Tensor, kept: torch.Tensor, measure_loss: bool) -> torch.Tensor:
        """The rows' loss gradients by score, as scores are laid out; kept [sites, batch]: what the loss is made of."""
        delta = self._scratch("delta", scores.shape)
        if self._classes == 1:
            if measure_loss:
                kept.copy_(scores[0])
            return torch.sigmoid(scores, out=delta).sub_(y)
        flat, wanted = scores.view(self._classes, -1), y.view(1, -1)
        logs = torch.log_softmax(flat, 0)
        if measure_loss:
            torch.gather(logs, 0, wanted, out=kept.view(1, -1))
        torch.exp(logs, out=delta.view(self._classes, -1))
        delta.view(self._classes, -1).scatter_add_(0, wanted, torch.full((1, 1), -1.0).expand_as(wanted))
        return delta

    def _losses(self, plan: Lockstep, kept: torch.Tensor, steps: Steps) -> torch.Tensor:
        if self._classes == 1:
            each = binary_cross_entropy_with_logits(kept, plan.y.float(), reduction="none")
        else:
            each = kept.neg_()
        if plan.share is None:
            return each.mean((0, 2))
        # Where a site stood still nothing was kept, not even a number.
        each = torch.where(plan.share > 0, each, 0.0).mul_(plan.share).sum((0, 2))
        return plan.restored(each) / torch.from_numpy(steps.steps).clamp_min(1)


def linear(model: nn.Module, layout: Layout, *, chunk: int = 128) -> Linear:
    return Linear(layout, chunk)
