"""The step that every kernel takes once it has its gradients, and how much each row of a batch counts in them."""

from __future__ import annotations

import torch

from pipelines.federated.work import LocalWork

TINY = 1e-12
"""Keeps a division by an empty batch or a zero gradient finite; any real weight or norm is far above."""


def bare(work: LocalWork, correction: torch.Tensor | None) -> bool:
    """Whether a step is w −= learning_rate · gradient and no more: then gradient and step may be one product."""
    return correction is None and not (work.momentum or work.weight_decay or work.clip_norm or work.proximal)


def descend(
    w: torch.Tensor,
    gradient: torch.Tensor,
    velocity: torch.Tensor | None,
    work: LocalWork,
    correction: torch.Tensor | None,
    anchor: torch.Tensor | None,
) -> None:
    """One step of LocalWork in place: w, gradient, velocity, correction [..., size]; gradient is used up.

    velocity is None where there is no momentum; anchor [size] or [..., size] is asked for where work.proximal is set.
    """
    if work.clip_norm > 0:
        norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
        gradient.mul_((work.clip_norm / norm.clamp_min_(TINY)).clamp_max_(1.0))
    if correction is not None:
        gradient.add_(correction)
    if work.proximal and anchor is not None:
        gradient.sub_(anchor, alpha=work.proximal)
    if work.proximal or work.weight_decay:
        gradient.add_(w, alpha=work.proximal + work.weight_decay)
    if velocity is not None:
        gradient = velocity.mul_(work.momentum).add_(gradient)
    w.sub_(gradient, alpha=work.learning_rate)


def shares(weight: torch.Tensor) -> torch.Tensor:
    """Row weights [..., batch] → each row's share of its batch's mean; a batch of padding alone has none."""
    return weight / weight.sum(-1, keepdim=True).clamp_min_(TINY)
