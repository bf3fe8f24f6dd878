"""Sites that step together: those with the most batches first, so that the ones still at work are always a prefix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pipelines.federated.kernels.descent import shares
from pipelines.federated.steps import Steps


@dataclass(frozen=True)
class Lockstep:
    """A chunk's plan turned by step.

    order: int64 [sites], which site of the chunk stands where, None where they stand as they came; active: by step,
    how many sites still work; index: int64 [steps, sites, batch]; share: float32 of that shape, or None where each
    row is 1/batch of its batch's mean; y: int64 of that shape.
    """

    order: torch.Tensor | None
    active: list[int]
    index: torch.Tensor
    share: torch.Tensor | None
    y: torch.Tensor

    def sorted(self, by_site: torch.Tensor) -> torch.Tensor:
        """[sites, ...] as they came → as they stand here."""
        return by_site if self.order is None else by_site[self.order]

    def restored(self, by_site: torch.Tensor) -> torch.Tensor:
        """The way back."""
        if self.order is None:
            return by_site
        out = torch.empty_like(by_site)
        out[self.order] = by_site
        return out


def lockstep(steps: Steps) -> Lockstep:
    index, weight, count = steps.index, steps.weight, steps.index.shape[1]
    if weight is None:
        turned = index.transpose(0, 1).contiguous()
        return Lockstep(None, [len(steps)] * count, turned, None, steps.y[turned])
    order = None
    if (np.diff(steps.steps) > 0).any():
        order = torch.from_numpy(np.argsort(-steps.steps, kind="stable"))
        index, weight = index[order], weight[order]
    turned = index.transpose(0, 1).contiguous()
    active = [int((steps.steps > step).sum()) for step in range(int(steps.steps.max(initial=0)))]
    return Lockstep(order, active, turned, shares(weight.transpose(0, 1).contiguous()), steps.y[turned])
