"""One process's share of a simulated cohort: its clients' rows, local updates and their sum, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.draws import seeds_of
from models.population import Ids, Population
from pipelines.federated.kernels.kernel import Kernel
from pipelines.federated.layout import Layout
from pipelines.federated.local_work import local_updates
from pipelines.federated.rules import Seats
from pipelines.federated.steps import steps_of
from pipelines.federated.strategy import Strategy
from pipelines.federated.work import LocalWork

Memory = Mapping[str, torch.Tensor]
"""What clients keep between rounds: by name, [clients, size]."""


@dataclass(frozen=True)
class Share:
    """clients: their numbers; importance: float64 [clients], a factor on their weights (FedBuff's staleness).

    start [size], shared: what the server sends; seed: of the round.
    """

    clients: Ids
    start: torch.Tensor
    shared: torch.Tensor
    work: LocalWork
    seed: int
    importance: NDArray[np.float64] | None = None
    memory: Memory = field(default_factory=dict)
    measure_loss: bool = True


@dataclass(frozen=True)
class Part:
    """What a share's clients sent, reduced; `memory` is in the order of the share's clients."""

    reduction: Any
    reports: int
    examples: float
    loss: float
    failures: tuple[str, ...]
    memory: Memory


class Trainer:
    """Trains shares over one population with one kernel. It keeps buffers, no state."""

    def __init__(self, population: Population, layout: Layout, strategy: Strategy, kernel: Kernel) -> None:
        self.population, self.layout, self.strategy, self.kernel = population, layout, strategy, kernel

    def __call__(self, share: Share) -> Part:
        strategy = self.strategy
        reduction, failures = strategy.reducer.start(), list[str]()
        reports, examples, loss = 0, 0.0, 0.0
        memory = {name: tensor.clone() for name, tensor in share.memory.items()}
        # Clients of about the same size wait for each other least when they are stepped together.
        counts = self.population.counts(share.clients)
        alike = len(counts) == 0 or int(counts.min()) == int(counts.max())
        order = np.arange(len(counts)) if alike else np.argsort(counts, kind="stable")
        for begin in range(0, len(order), self.kernel.chunk):
            part = order[begin : begin + self.kernel.chunk]
            clients = share.clients[part]
            seeds = seeds_of(share.seed, clients)
            steps = steps_of(self.population.rows(clients), share.work, seeds)
            seats = Seats(self.layout, seeds, {name: tensor[part] for name, tensor in memory.items()})
            sent, losses = local_updates(
                self.kernel, steps, share.start, share.shared, share.work, strategy.rule, strategy.stages, seats,
                share.measure_loss,
            )  # fmt: skip
            counted, kept = steps.examples, seats.memory
            weights = np.ones(len(part)) if strategy.rule.uniform else counted
            if share.importance is not None:
                weights = weights * share.importance[part]
            # One diverged client would turn everybody's weights into NaN.
            if not (math.isfinite(float(sent.sum())) and counted.all()):
                good = np.isfinite(sent.numpy().sum(axis=1)) & (counted > 0)
                failures += [_reason(int(c), n) for c, n in zip(clients[~good], counted[~good], strict=True)]
                sent, losses, weights = sent[good], losses[good], weights[good]
                counted, part = counted[good], part[good]
                kept = {name: tensor[good] for name, tensor in kept.items()}
            reduction = strategy.reducer.add(reduction, sent, torch.from_numpy(weights))
            reports, examples = reports + len(counted), examples + float(counted.sum())
            if share.measure_loss:
                loss += float(losses.double().numpy() @ counted)
            for name, tensor in memory.items():
                tensor[part] = kept[name]
        return Part(reduction, reports, examples, loss, tuple(failures), memory)


def _reason(client: int, examples: float) -> str:
    if examples == 0:
        return f"client {client} has no rows"
    return f"client {client}: the update is not finite; a smaller learning rate or a clip_norm may help"
