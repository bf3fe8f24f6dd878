"""Sites that step together: those with the most batches first, so that the ones still at work are always a prefix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pipelines.federated.kernels.descent import shares
from pipelines.federated.steps import Steps


@dataclass(frozen=True)
class Lockstep:
    """A chunk's plan, the sites in an order in which those still at work are a prefix.

    order: int64 [sites], which site of the chunk stands where, None where they stand as they came; active: by step,
    how many sites still work; index: int64 [sites, steps, batch]; share: float32 of that shape, or None where each
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
    index, weight = steps.index, steps.weight
    if weight is None:
        return Lockstep(None, [len(steps)] * index.shape[1], index, None, _labels(steps.y, index))
    order = None
    if (np.diff(steps.steps) > 0).any():
        order = torch.from_numpy(np.argsort(-steps.steps, kind="stable"))
        index, weight = index[order], weight[order]
    active = [int((steps.steps > step).sum()) for step in range(int(steps.steps.max(initial=0)))]
    return Lockstep(order, active, index, shares(weight), _labels(steps.y, index))


def _labels(y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return y.index_select(0, index.reshape(-1)).view(index.shape)
