"""The loss of each example. A model with one output is a logistic one; any other is a softmax over its outputs."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy


def example_losses(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """outputs: [n, classes], or [n, 1] for the log-odds of class 1; y: int64 [n]. Returns [n]."""
    if outputs.shape[-1] == 1:
        return binary_cross_entropy_with_logits(outputs[:, 0], y.to(outputs.dtype), reduction="none")
    return cross_entropy(outputs, y, reduction="none")
