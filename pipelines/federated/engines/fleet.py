"""The engine of a simulated fleet: who reports is decided on the fleet's virtual clock, then those who do are trained.

A client's rows come from a population when it is trained and are gone afterwards, so memory grows with the chunk and
the model, not with the fleet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn

from models.draws import draw_seed
from models.population import Ids, Population
from pipelines.federated.clock import Clock
from pipelines.federated.cohort import Abandoned, Committed
from pipelines.federated.engines.share import Part, Share, Trainer
from pipelines.federated.engines.turnout import Called, Turnout
from pipelines.federated.engines.workers import Workers
from pipelines.federated.kernels.choose import kernel_named
from pipelines.federated.layout import Layout
from pipelines.federated.plan import Gathered, TrainingPlan, TrainingState
from pipelines.federated.remembered import Remembered
from pipelines.federated.stages import memory_names
from pipelines.federated.strategy import Strategy

LOG = logging.getLogger("fedloop.training")


@dataclass(frozen=True)
class FleetContext(Mapping[str, torch.Tensor]):
    """What goes from round to round beside the weights; as tensors only where it is written or read.

    memory: what clients keep; versions: weights [size] of earlier rounds that devices still work on,
    by round.
    """

    clock: Clock
    memory: Remembered
    versions: Mapping[int, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        parts = {
            "clock": {name: torch.from_numpy(array) for name, array in self.clock.arrays().items()},
            "memory": self.memory.tensors(),
            "versions": {str(number): weights for number, weights in self.versions.items()},
        }
        return {f"{part}/{name}": tensor for part, own in parts.items() for name, tensor in own.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class FleetEngine:
    """population: whose rows; turnout: who reports in a round; kernel: by its name in `kernels.choose`.

    processes: how many train side by side, one thread each; with 1, `threads` of torch in this one. loss_every: rounds
    between those whose loss is measured (for a small model measuring costs as much as a step).
    """

    def __init__(
        self,
        model: nn.Module,
        population: Population,
        turnout: Turnout,
        strategy: Strategy,
        kernel: str = "plain",
        processes: int = 1,
        threads: int = 1,
        loss_every: int = 1,
    ) -> None:
        self.population, self.turnout, self.strategy = population, turnout, strategy
        self.layout = Layout.of_model(model)
        self.threads, self.loss_every = threads, loss_every
        self._workers = Workers(
            Trainer(population, self.layout, strategy, kernel_named(kernel, model, self.layout)), processes
        )

    def __enter__(self) -> FleetEngine:
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1 if self._workers.processes > 1 else self.threads)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.close()
        torch.set_num_threads(self._threads_before)

    def collect(self, plan: TrainingPlan, state: TrainingState) -> tuple[Gathered, FleetContext]:
        """Call a cohort, train those who report, and reduce what they send."""
        number = state.round + 1
        context = self._context(state)
        called, clock = self.turnout.call(plan.seed, number, context.clock)
        start = self.layout.flatten(state.parameters)
        if isinstance(called.outcome, Abandoned):
            nothing = self.strategy.reducer.start()
            gathered = Gathered(called.outcome, nothing, called.asked, 0, 0.0, 0.0, 0.0, session=called.session)
            return gathered, FleetContext(clock, context.memory, self._versions(context, called, state.round, start))
        parts: list[Part] = []
        memory = context.memory
        for version, place in called.by_version(state.round):
            weights = start if version == state.round else context.versions[version]
            shares = self._shares(plan, state, weights, called, place, memory)
            for share, part in zip(shares, self._workers.train(shares), strict=True):
                parts.append(part)
                memory = memory.keep(share.clients, part.memory) if memory.rows else memory
        failures = tuple(reason for part in parts for reason in part.failures)
        for reason in failures[:3]:
            LOG.warning("round %d: %s", number, reason)
        reports = sum(part.reports for part in parts)
        outcome = Committed(reports) if reports else Abandoned(f"no update can be used: {'; '.join(failures[:3])}")
        gathered = Gathered(
            outcome,
            reduce(self.strategy.reducer.merge, (part.reduction for part in parts)),
            called.asked,
            reports,
            sum(part.examples for part in parts),
            sum(part.loss for part in parts) if self._measures(number) else float("nan"),
            reports / self.population.size,
            failures,
            called.scale,
            called.session,
        )
        return gathered, FleetContext(clock, memory, self._versions(context, called, state.round, start))

    def _context(self, state: TrainingState) -> FleetContext:
        if isinstance(state.context, FleetContext):
            return state.context
        parts: dict[str, dict[str, Any]] = {"clock": {}, "memory": {}, "versions": {}}
        for name, tensor in state.context.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        names = memory_names(self.strategy.rule, self.strategy.stages)
        memory = Remembered.from_tensors(names, self.layout.size, parts["memory"])
        clock = {name: tensor.numpy() for name, tensor in parts["clock"].items()}
        return FleetContext(
            Clock.from_arrays(clock) if clock else Clock(),
            memory,
            {int(n): weights for n, weights in parts["versions"].items()},
        )

    def _versions(
        self, context: FleetContext, called: Called, round_number: int, start: torch.Tensor
    ) -> Mapping[int, torch.Tensor]:
        """The weights that devices still work on."""
        known = {**context.versions, round_number: start}
        return {number: known[number] for number in called.in_flight}

    def _shares(
        self,
        plan: TrainingPlan,
        state: TrainingState,
        start: torch.Tensor,
        called: Called,
        place: Ids,
        memory: Remembered,
    ) -> list[Share]:
        """The clients at `place` dealt to the processes, about the same number of rows to each."""
        clients = called.clients[place]
        count = min(self._workers.processes, len(clients))
        number = state.round + 1
        shares = []
        for own in _deal(self.population.counts(clients), count):
            importance = None if called.importance is None else called.importance[place[own]]
            kept = memory.of(clients[own]) if memory.rows else {}
            shares.append(
                Share(
                    clients[own],
                    start,
                    state.shared,
                    plan.work(number),
                    draw_seed(plan.seed, number),
                    importance,
                    kept,
                    self._measures(number),
                )
            )
        return shares

    def _measures(self, number: int) -> bool:
        return number % self.loss_every == 0 or number == 1


def _deal(counts: Ids, shares: int) -> list[Ids]:
    """Positions by share: the largest first, to and fro, so that the shares' sums are close."""
    if shares == 1:
        return [np.arange(len(counts))]
    order = np.argsort(-counts, kind="stable")
    turn = np.arange(len(order)) % (2 * shares)
    to = np.where(turn < shares, turn, 2 * shares - 1 - turn)
    return [np.sort(order[to == share]) for share in range(shares)]
