"""The loss of each example. A model with one output is a logistic one; any other is a softmax over its outputs."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy


def example_losses(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """outputs: [n, classes], or [n, 1] for the log-odds of class 1; y: int64 [n]. Returns [n]."""
    if outputs.shape[-1] == 1:
        return binary_cross_entropy_with_logits(outputs[:, 0], y.to(outputs.dtype), reduction="none")
    return cross_entropy(outputs, y, reduction="none")


def wanted_outputs(y: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """What outputs turned into probabilities should be, in `out` [*y.shape, classes]; y: int64."""
    if out.shape[-1] == 1:
        return out.copy_(y[..., None])
    return out.zero_().scatter_(-1, y[..., None], 1.0)


def pull_of_loss(outputs: torch.Tensor, wanted: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Gradient of the sum of the rows' losses by the outputs [..., classes], in `out`; wanted: `wanted_outputs`."""
    if outputs.shape[-1] == 1:
        torch.sigmoid(outputs, out=out)
    else:
        torch.softmax(outputs, -1, out=out)
    return out.sub_(wanted)


def mean_losses(
    outputs: torch.Tensor, y: torch.Tensor, share: torch.Tensor | None, steps: torch.Tensor
) -> torch.Tensor:
    """Outputs [sites, steps, batch, classes] → each site's mean batch loss, all sites at once."""
    each = example_losses(outputs.flatten(0, 2), y.flatten()).view(y.shape)
    of_batches = each.mean(2) if share is None else (each * share).sum(2)
    return of_batches.sum(1) / steps.clamp_min(1)
