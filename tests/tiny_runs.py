"""Short training runs over tiny sites, to be interrupted: their plan, a rule that forgets nothing, and when two states
are one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from tiny_sites import LABELLING, make_engine

from pipelines.federated.cohort import Cohort
from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.plan import TrainingPlan, TrainingState
from pipelines.federated.rules import PLAIN, LocalRule, Sent, Turn
from pipelines.federated.scaffold import SCAFFOLD
from pipelines.federated.server_optimizers import Adam
from pipelines.federated.strategy import Strategy
from pipelines.federated.work import LocalWork

SIZES = {"a": 8, "b": 13, "c": 5}
WORK = LocalWork(epochs=1, batch_size=5, learning_rate=0.1, momentum=0.9)


def _local(turn: Turn) -> Sent:
    deltas, losses = turn.train(turn.start)
    sent = deltas + 0.5 * turn.seats.memory["trail"]
    turn.seats.memory["trail"] = sent
    return sent, losses


def _absorb(mean: torch.Tensor, shared: torch.Tensor, share_of_population: float) -> tuple[torch.Tensor, torch.Tensor]:
    update = mean + 0.1 * shared
    return update, update


TRAIL = LocalRule("trail", _local, torch.zeros, _absorb, memory=("trail",))
"""Every site adds half of where it went before, the server a tenth of its last step."""

RULES: Mapping[str, LocalRule] = {rule.name: rule for rule in (PLAIN, TRAIL, SCAFFOLD)}


def plan_over(snapshots: Mapping[str, tuple[str, ...]], rounds: int, rule: LocalRule = PLAIN) -> TrainingPlan:
    """Two of the three sites a round, under a server that has moments."""
    strategy = Strategy(WORK, rule, server=Adam(0.05))
    return TrainingPlan((LABELLING,), snapshots, rounds, 3, strategy, Cohort(goal=2))


def sites_in(root: Path, stacked: bool = True) -> tuple[LocalEngine, dict[str, tuple[str, ...]]]:
    """The same sites from the same folder, made at the first call, and their snapshots."""
    return make_engine(root, SIZES, stacked)


def equal(one: TrainingState, other: TrainingState) -> bool:
    """To the bit, types and shapes included."""
    return (one.round, one.log) == (other.round, other.log) and _bytes(one) == _bytes(other)


def _bytes(state: TrainingState) -> dict[tuple[str, ...], tuple[object, ...]]:
    tensors = {("shared",): state.shared}
    tensors |= {("parameters", name): tensor for name, tensor in state.parameters.items()}
    tensors |= {("context", name): tensor for name, tensor in state.context.items()}
    for moment, values in state.moments.items():
        tensors |= {("moments", moment, name): tensor for name, tensor in values.items()}
    return {name: (t.dtype, tuple(t.shape), t.contiguous().numpy().tobytes()) for name, t in tensors.items()}
