"""SCAFFOLD: every site corrects its gradients by how its own mean gradient differs from everybody's.

Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning", ICML 2020, algorithm 1 with
option II. Its server learning rate is the server optimizer's.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pipelines.federated.fednova import normaliser
from pipelines.federated.rules import LocalRule, Sent, Turn


def _local(turn: Turn) -> Sent:
    """A site sends its update and the change of cᵢ: [sites, 2 · size]."""
    control, work = turn.seats.memory["control"], turn.work
    deltas, losses = turn.train(turn.start, correction=turn.shared - control)
    # The paper's K · η_l; with momentum the mean gradient is a weighted one, and still a mean.
    taken = torch.from_numpy(normaliser(turn.steps, replace(work, proximal=0.0))).to(deltas.dtype)[:, None]
    change = torch.where(taken == 0, 0, -turn.shared - deltas / (taken * work.learning_rate))
    turn.seats.memory["control"] = control + change
    return torch.cat([deltas, change], dim=1), losses


def _absorb(mean: torch.Tensor, shared: torch.Tensor, share_of_population: float) -> tuple[torch.Tensor, torch.Tensor]:
    update, change = mean.chunk(2)
    return update, shared + share_of_population * change


SCAFFOLD = LocalRule("scaffold", _local, torch.zeros, _absorb, memory=("control",), uniform=True)
"""Control variates: cᵢ at the site ("control"), c at the server (`shared`). Every site counts one."""
