"""SCAFFOLD: every site corrects its gradients by how its own mean gradient differs from everybody's.

Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning", ICML 2020, algorithm 1 with
option II. Its server learning rate is the server optimizer's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.federated.fednova import normaliser
from pipelines.federated.rules import Seats, Train
from pipelines.federated.work import LocalWork


@dataclass(frozen=True)
class Scaffold:
    """Control variates: cᵢ at the site ("control"), c at the server (`shared`). Every site counts one.

    A site sends its update and the change of cᵢ: [sites, 2 · size].
    """

    name: str = "scaffold"
    memory: tuple[str, ...] = ("control",)
    uniform: bool = True

    def shared(self, size: int) -> torch.Tensor:
        return torch.zeros(size)

    def local(
        self,
        train: Train,
        start: torch.Tensor,
        shared: torch.Tensor,
        seats: Seats,
        steps: NDArray[np.int64],
        work: LocalWork,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        control = seats.memory["control"]
        deltas, losses = train(start, correction=shared - control)
        # The paper's K · η_l; with momentum the mean gradient is a weighted one, and still a mean.
        taken = torch.from_numpy(normaliser(steps, replace(work, proximal=0.0))).to(deltas.dtype)[:, None]
        change = torch.where(taken == 0, 0, -shared - deltas / (taken * work.learning_rate))
        seats.memory["control"] = control + change
        return torch.cat([deltas, change], dim=1), losses

    def absorb(
        self, mean: torch.Tensor, shared: torch.Tensor, share_of_population: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        update, change = mean.chunk(2)
        return update, shared + share_of_population * change
