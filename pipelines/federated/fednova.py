"""FedNova: sites that take more steps pull the mean towards their own optimum; normalised averaging takes it out.

Wang, Liu, Liang, Joshi and Poor, "Tackling the objective inconsistency problem in heterogeneous federated
optimization", NeurIPS 2020, equations 7 to 9.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.federated.rules import LocalRule, Sent, Turn
from pipelines.federated.work import LocalWork


def normaliser(steps: NDArray[np.int64], work: LocalWork) -> NDArray[np.float64]:
    """‖a‖₁ [sites]: an update is −learning_rate · Σ aⱼ gⱼ over a site's steps, and this is Σ aⱼ.

    1 a step for plain SGD; momentum lets a gradient work on in the steps after it, the proximal term fades it out.
    """
    sums = np.zeros(int(steps.max(initial=0)) + 1)
    reach, velocity = 0.0, 1.0  # of one unit of gradient, some steps later
    for step in range(1, len(sums)):
        reach += velocity
        velocity = work.momentum * velocity - work.learning_rate * work.proximal * reach
        sums[step] = sums[step - 1] + reach
    return np.asarray(sums[steps])


def _local(turn: Turn) -> Sent:
    deltas, losses = turn.train(turn.start)
    taken = torch.from_numpy(normaliser(turn.steps, turn.work)).to(deltas.dtype)[:, None]
    # A site without a step has moved by nothing: whatever it is divided by.
    return torch.cat([deltas / torch.where(taken == 0, 1, taken), taken], dim=1), losses


def _absorb(mean: torch.Tensor, shared: torch.Tensor, share_of_population: float) -> tuple[torch.Tensor, torch.Tensor]:
    return mean[:-1] * mean[-1], shared


FEDNOVA = LocalRule("fednova", _local, absorb=_absorb)
"""Sites send their update per unit of a, and Σ a beside it; the server scales the mean by the mean Σ a (τ_eff)."""
