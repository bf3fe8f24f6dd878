"""Logistic and softmax regression of many sites at once, by hand: every operation is one over the whole chunk.

The first step of all sites uses the same weights, so it is one product; later ones are batched products over what the
sites have of their own. Scores lie as [classes, sites · batch]: over so few classes a softmax along the last
dimension costs thirty times more.
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


CACHED = 2**18
"""Numbers of all rows of a chunk up to which they are taken at once: 1 MB, a core's second cache."""


class Linear:
    """The weights of all sites are the rows of one matrix [sites, size], whatever the order within a row."""

    together = True

    def __init__(self, layout: Layout, chunk: int = 128) -> None:
        self.name, self.chunk = f"linear-{chunk}", chunk
        shapes = dict(zip(layout.names, layout.shapes, strict=True))
        self._classes, self._features = shapes[next(name for name in shapes if name.endswith("weight"))]
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
        plan = lockstep(steps)
        start = start if start.dim() == 1 else plan.sorted(start)
        rate = 1.0 if plan.share is not None else 1.0 / steps.index.shape[2]
        kept = self._scratch("kept", plan.index.shape) if measure_loss else None
        if bare(work, correction):
            deltas = self._in_place(start, steps.x, plan, -work.learning_rate * rate, kept)
        else:
            turn = None if correction is None else plan.sorted(correction)
            deltas = self._by_gradient(start, steps.x, plan, work, rate, turn, anchor, kept)
        losses = torch.zeros(len(steps)) if kept is None else self._losses(plan, kept, steps)
        return plan.restored(deltas), losses

    def _in_place(
        self, start: torch.Tensor, x: torch.Tensor, plan: Lockstep, rate: float, kept: torch.Tensor | None
    ) -> torch.Tensor:
        """Bare SGD, where gradient and step are one product. Few rows of a common start are taken all at once: their
        scores by the start are then one product too, and what the sites' moves add to them is a batched one.
        """
        scratch, classes, features = self._scratch, self._classes, self._features
        sites, count, batch = plan.index.shape
        common, (weight, bias) = start.dim() == 1, self._parts(start)
        at_once = sites * count * batch * features <= CACHED
        apart = common and at_once
        matrices = scratch("matrices", (sites, classes, features))
        matrices = matrices.zero_() if apart else matrices.copy_(weight)
        biases = scratch("biases", (self._biases, sites)).copy_(bias[:, None] if common else bias.t())
        for first in range(0, len(plan.active), count if at_once else 1):
            index = plan.index[: plan.active[first], first : None if at_once else first + 1]
            rows = gather(x, index.reshape(-1), torch.float32, scratch).flatten(1)
            if common and (apart or first == 0):
                ahead = torch.mm(weight, rows.t(), out=scratch("ahead", (classes, len(rows)))).view(
                    classes, *index.shape
                )
            rows = rows.view(*index.shape, features)
            for step in range(first, len(plan.active) if at_once else first + 1):
                active = plan.active[step]
                x_step = rows[:active, step - first]
                if step or not common:
                    by_site = torch.bmm(matrices[:active], x_step.mT, out=scratch("scores", (active, classes, batch)))
                    scores = by_site.transpose(0, 1)
                    scores = ahead[:, :active, step].add_(scores) if apart else scores
                else:
                    scores = ahead[:, :, 0]
                if self._biases:
                    scores.add_(biases[:, :active, None])
                delta = self._delta(scores, plan, step, kept)
                matrices[:active].baddbmm_(delta.transpose(0, 1), x_step, alpha=rate)
                if self._biases:
                    biases[:, :active].add_(delta.sum(2), alpha=rate)
        out = scratch("w", (sites, self._size))
        by_weight, by_bias = self._parts(out)
        torch.sub(matrices, 0.0 if apart else weight, out=by_weight)
        torch.sub(biases.t(), bias, out=by_bias)
        return out

    def _by_gradient(
        self,
        start: torch.Tensor,
        all_x: torch.Tensor,
        plan: Lockstep,
        work: LocalWork,
        rate: float,
        correction: torch.Tensor | None,
        anchor: torch.Tensor | None,
        kept: torch.Tensor | None,
    ) -> torch.Tensor:
        """The same under any LocalWork."""
        scratch, sites = self._scratch, len(plan.index)
        w = scratch("w", (sites, self._size)).copy_(start)
        velocity = scratch("velocity", w.shape).zero_() if work.momentum else None
        pull = start if anchor is None else anchor
        for step, active in enumerate(plan.active):
            index = plan.index[:active, step]
            x = gather(all_x, index.reshape(-1), torch.float32, scratch).view(*index.shape, self._features)
            weight, bias = self._parts(w[:active])
            # Copies, as batched products over views that are not contiguous fall back to one product after the other.
            matrices = scratch("matrices", weight.shape).copy_(weight)
            scores = torch.bmm(matrices, x.mT).transpose(0, 1)
            if self._biases:
                scores.add_(bias.t()[:, :, None])
            delta = self._delta(scores, plan, step, kept).mul_(rate)
            gradient = scratch("gradient", (active, self._size))
            by_weight, by_bias = self._parts(gradient)
            by_weight.copy_(torch.bmm(delta.transpose(0, 1), x))
            if self._biases:
                by_bias.copy_(delta.sum(2).t())
            descend(
                w[:active],
                gradient,
                None if velocity is None else velocity[:active],
                work,
                None if correction is None else correction[:active],
                pull if pull.dim() == 1 else pull[:active],
            )
        return w.sub_(start)

    def _parts(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views into [..., size]: weights [..., classes, features] and biases [..., classes or 0]."""
        weight = flat[..., self._biases :].view(*flat.shape[:-1], self._classes, self._features)
        return weight, flat[..., : self._biases]

    def _delta(self, scores: torch.Tensor, plan: Lockstep, step: int, kept: torch.Tensor | None) -> torch.Tensor:
        """The rows' loss gradients by score, contiguous, from scores [classes, active, batch], times their share.

        kept [sites, steps, batch]: what the loss is made of.
        """
        active = scores.shape[1]
        delta, y = self._scratch("delta", scores.shape), plan.y[:active, step]
        if self._classes == 1:
            if kept is not None:
                kept[:active, step] = scores[0]
            torch.sigmoid(scores, out=delta).sub_(y)
        else:
            logs, wanted = torch.log_softmax(scores.reshape(self._classes, -1), 0), y.reshape(1, -1)
            if kept is not None:
                kept[:active, step] = logs.gather(0, wanted).view(y.shape)
            flat = torch.exp(logs, out=delta.view(self._classes, -1))
            flat.scatter_add_(0, wanted, torch.full((1, 1), -1.0).expand_as(wanted))
        return delta if plan.share is None else delta.mul_(plan.share[:active, step])

    def _losses(self, plan: Lockstep, kept: torch.Tensor, steps: Steps) -> torch.Tensor:
        if self._classes == 1:
            each = binary_cross_entropy_with_logits(kept, plan.y.float(), reduction="none")
        else:
            each = kept.neg_()
        if plan.share is None:
            return each.mean((1, 2))
        # Where a site stood still nothing was kept, not even a number.
        each = torch.where(plan.share > 0, each, 0.0).mul_(plan.share).sum((1, 2))
        return plan.restored(each) / torch.from_numpy(steps.steps).clamp_min(1)


def linear(model: nn.Module, layout: Layout, *, chunk: int = 128) -> Linear:
    return Linear(layout, chunk)
