"""The one round loop: load the latest state, ask a cohort, reduce, step, save, repeat.

State is data: the parameters, the server optimizer's moments, the round and the log are one value, written
atomically after every round. Nothing else is remembered, so `kill -9` anywhere and the same call again give
bit-identical weights to an undisturbed run's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pipelines.federated.cohort import Abandoned, Cohort
from pipelines.federated.engines.local import Engine
from pipelines.federated.jobs import Failure, LocalWork, Parameters, TrainAnswer, TrainJob
from pipelines.federated.stages import on_server
from pipelines.federated.store import write_atomically
from pipelines.federated.strategy import Moments, Strategy

KEPT = 3
"""Checkpoints kept: the latest and two before it, in case the latest is torn."""

LOG = logging.getLogger("fedloop.training")


@dataclass(frozen=True)
class RoundRecord:
    round: int
    asked: int
    reports: int
    examples: float
    loss: float
    abandoned: str | None = None


@dataclass(frozen=True)
class TrainingState:
    """Everything a run is: serialise it, and the run can go on anywhere."""

    round: int
    parameters: Parameters
    moments: Moments
    log: tuple[RoundRecord, ...] = ()


@dataclass(frozen=True)
class TrainingPlan:
    """What determines a run, and so its result."""

    labellings: tuple[str, ...]
    snapshots: Mapping[str, tuple[str, ...]]  # site → snapshot ids
    rounds: int
    seed: int
    strategy: Strategy = field(default_factory=Strategy)
    cohort: Cohort = field(default_factory=Cohort)
    fresh: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # new snapshots: see TrainJob.fresh
    final_rate: float = 1.0  # share of the learning rate that is left at the end, on a cosine (Loshchilov, 2017)

    def work(self, round_number: int) -> LocalWork:
        """The local work of a round, 1 to `rounds`."""
        work = self.strategy.work
        falling = 0.5 * (1.0 + math.cos(math.pi * (round_number - 1) / self.rounds))
        return replace(work, learning_rate=work.learning_rate * (self.final_rate + (1 - self.final_rate) * falling))


def train(
    plan: TrainingPlan,
    initial: Parameters,
    engine: Engine,
    folder: Path,
    on_round: Callable[[TrainingState], None] = lambda _: None,
) -> TrainingState:
    """Run the plan's rounds from the latest checkpoint in `folder` (or from `initial`) to the end.

    on_round is called after each round is safely on disk; after a crash it may see the last round again.
    """
    state = latest(folder) or TrainingState(0, initial, plan.strategy.server.start(initial))
    while state.round < plan.rounds:
        state = run_round(plan, state, engine)
        checkpoint(folder, state)
        on_round(state)
    return state


def run_round(plan: TrainingPlan, state: TrainingState, engine: Engine) -> TrainingState:
    """One round: the next state, with the same parameters where the round is abandoned."""
    number = state.round + 1
    strategy = plan.strategy
    population = [name for name in engine.population if plan.snapshots.get(name)]
    asked = plan.cohort.select(population, plan.seed, number)
    jobs = {
        name: TrainJob(
            number,
            plan.seed,
            plan.labellings,
            plan.snapshots[name],
            state.parameters,
            plan.work(number),
            strategy.stages,
            plan.fresh.get(name, ()),
        )
        for name in asked
    }
    reduction = strategy.reducer.start()
    failures: list[str] = []
    reports, examples, loss = 0, 0.0, 0.0
    for name, answer in engine.ask(jobs):
        if isinstance(answer, Failure):
            failures.append(answer.reason)
        elif isinstance(answer, TrainAnswer) and not _is_finite(answer):
            failures.append(f"{name}: the update is not finite; a smaller learning rate or a clip_norm may help")
        elif isinstance(answer, TrainAnswer) and answer.examples > 0:
            reduction = strategy.reducer.add(reduction, answer.delta, answer.examples)
            reports, examples, loss = reports + 1, examples + answer.examples, loss + answer.examples * answer.loss
        else:
            failures.append(f"{name} has no labelled rows")
    for reason in failures:
        LOG.warning("round %d: %s", number, reason)
    record = RoundRecord(number, len(asked), reports, examples, loss / max(examples, 1e-12))
    outcome = plan.cohort.judge(len(asked), reports, failures)
    if isinstance(outcome, Abandoned):
        return replace(state, round=number, log=(*state.log, replace(record, abandoned=outcome.reason)))
    update = on_server(strategy.stages, strategy.reducer.finish(reduction))
    parameters, moments = strategy.server.step(state.parameters, update, state.moments)
    return TrainingState(number, parameters, moments, (*state.log, record))


def _is_finite(answer: TrainAnswer) -> bool:
    """One diverged site would turn everybody's weights into NaN."""
    return math.isfinite(answer.examples) and all(bool(tensor.isfinite().all()) for tensor in answer.delta.values())


# -- checkpoints ------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, state: TrainingState) -> None:
    """Write the state atomically and drop the oldest ones."""
    tensors = {f"parameters/{name}": tensor for name, tensor in state.parameters.items()}
    for moment, values in state.moments.items():
        tensors |= {f"moments/{moment}/{name}": tensor for name, tensor in values.items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    head = {"round": str(state.round), "log": json.dumps([asdict(record) for record in state.log])}
    whole = head | {"sha256": _fingerprint(tensors, head)}
    write_atomically(folder / f"round-{state.round:06d}.safetensors", save(tensors, whole))
    for old in sorted(folder.glob("round-*.safetensors"))[:-KEPT]:
        old.unlink()


def latest(folder: Path) -> TrainingState | None:
    """The newest state that can be read whole; a torn or altered file is passed over with a warning."""
    for path in sorted(folder.glob("round-*.safetensors"), reverse=True):
        try:
            return _read(path)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            LOG.warning("checkpoint %s is damaged (%s); trying the one before it", path, error)
    return None


def _read(path: Path) -> TrainingState:
    parameters: Parameters = {}
    moments: Moments = {}
    with safe_open(path, framework="pt") as file:
        head = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if _fingerprint(tensors, head) != head["sha256"]:
        raise ValueError("its content does not match its checksum")
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "parameters":
            parameters[rest] = tensor
        else:
            moment, _, parameter = rest.partition("/")
            moments.setdefault(moment, {})[parameter] = tensor
    log = tuple(RoundRecord(**record) for record in json.loads(head["log"]))
    return TrainingState(int(head["round"]), parameters, moments, log)


def _fingerprint(tensors: Mapping[str, torch.Tensor], head: Mapping[str, str]) -> str:
    hasher = hashlib.sha256(repr((head["round"], head["log"])).encode())
    for name in sorted(tensors):
        hasher.update(repr((name, tensors[name].dtype, tuple(tensors[name].shape))).encode())
        hasher.update(tensors[name].contiguous().numpy().tobytes())
    return hasher.hexdigest()
