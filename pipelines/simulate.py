"""Simulate a fleet: any task, any population, the strategies and rounds of a real federation on a virtual clock.

What determines the result names the folder of its checkpoints, so the same call goes on where an earlier one stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.draws import draw_seed, seeds_of
from models.errors import BadInput
from models.fleet_task import FleetTask, find_fleet_task
from models.population import Population
from models.scores import scores_of
from pipelines.federated.buffered import Buffering
from pipelines.federated.checkpoints import latest
from pipelines.federated.cohort import DAY_S, KEYBOARD_COHORT
from pipelines.federated.compression import ErrorFeedback, Quantise
from pipelines.federated.engines.fleet import FleetEngine
from pipelines.federated.engines.tuning import arrange
from pipelines.federated.engines.turnout import Always, OnClock, Turnout
from pipelines.federated.fednova import FEDNOVA
from pipelines.federated.files import digest
from pipelines.federated.fleet import Fleet
from pipelines.federated.kernels.choose import choose, kernel_named
from pipelines.federated.layout import Layout, drawn_model, parameters_of
from pipelines.federated.low_rank import LowRank
from pipelines.federated.personal import Personalisation, compare
from pipelines.federated.plan import RoundRecord, TrainingPlan, TrainingState
from pipelines.federated.remembered import Remembered
from pipelines.federated.scaffold import SCAFFOLD
from pipelines.federated.sessions import SessionCost
from pipelines.federated.sparse import RandomMask, TopK
from pipelines.federated.stages import Stage, sent_bytes
from pipelines.federated.steps import steps_of
from pipelines.federated.strategies import find_strategy
from pipelines.federated.strategy import Strategy
from pipelines.federated.training import train
from pipelines.federated.work import LocalWork

LOG = logging.getLogger("fedloop")

CHECKPOINT_S = 5.0
"""Seconds between checkpoints at least: a round of a small model takes less than writing one."""
TELL_S = 10.0
"""Seconds between lines of progress."""
BY_ROUNDS = (SCAFFOLD, FEDNOVA)
PLAN_BYTES = 4096.0
"""What a device is sent beside the parameters: which rows, how many epochs, where to report."""
IN_FLIGHT = 4
"""Devices at work for an asynchronous server, by its buffer's size."""


@dataclass(frozen=True)
class Simulation:
    """What determines a simulation's result, the kernel and the arithmetic of the machine aside.

    population: devices; cohort: reports a round wants; strategy, compression: names; always_available: no virtual
    clock, whoever is drawn reports; asynchronous: FedBuff, with `cohort` the size of the buffer.
    """

    task: str
    population: int
    cohort: int
    rounds: int
    strategy: str = "fedavg"
    compression: str = "none"
    always_available: bool = False
    asynchronous: bool = False
    bfloat16: bool = False
    seed: int = 0
    work: LocalWork = field(default_factory=LocalWork)
    overrides: Mapping[str, float] = field(default_factory=dict)  # of the strategy


@dataclass(frozen=True)
class Outcome:
    """fleet: whose rounds the state's log tells of, None where everybody was always there.

    client_updates_per_s: over this call's own rounds, evaluation and checkpoints included.
    """

    simulation: Simulation
    fleet: Fleet | None
    state: TrainingState
    quality: Mapping[str, float]
    metric: str
    history: tuple[tuple[int, float], ...]  # round, the metric
    seconds: float
    client_updates_per_s: float
    kernel: str
    processes: int
    threads: int
    folder: str


def simulation_of(
    task: str, population: int | None, cohort: int | None, rounds: int, work: Mapping[str, Any], **choices: Any
) -> Simulation:
    """A simulation with the task's own defaults for what is None or not in `work`.

    Raises:
        BadInput: no such task, or a number below 1.
    """
    found = find_fleet_task(task)
    recipe = {**found.recipe, **{name: value for name, value in work.items() if value is not None}}
    known = set(LocalWork.__dataclass_fields__)
    local = LocalWork(**{name: value for name, value in recipe.items() if name in known})
    size = found.default_size if population is None else population
    goal = min(int(recipe.get("goal", 100)), size) if cohort is None else cohort
    for name, value in (("--population", size), ("--cohort", goal), ("--rounds", rounds)):
        if value < 1:
            raise BadInput(f"{name} is {value}; give a whole number of at least 1")
    if goal > size:
        raise BadInput(
            f"--cohort {goal} is more than the {size} devices of the population; lower it or raise --population"
        )
    return Simulation(task, size, goal, rounds, work=local, **choices)


def simulate(
    simulation: Simulation,
    home: Path,
    processes: int = 0,
    evaluate_every: int = 0,
    on_round: Callable[[RoundRecord], None] = lambda _: None,
) -> Outcome:
    """Run the simulation from its latest checkpoint under `home` to its last round.

    processes: one thread each; 0 measures what is fastest; evaluate_every: rounds, 0 for about ten evaluations in all.
    """
    task = find_fleet_task(simulation.task)
    population = task.population(simulation.population, simulation.seed)
    if population.size < simulation.cohort:
        raise BadInput(f"task {simulation.task} has {population.size} clients, fewer than --cohort {simulation.cohort}")
    model = drawn_model(task, simulation.seed)
    initial, layout = parameters_of(model), Layout.of_model(model)
    strategy = strategy_of(simulation)
    plan = TrainingPlan((), {}, simulation.rounds, simulation.seed, strategy)
    folder = folder_of(simulation, home)
    kernel = _kernel(simulation, model, population, home, folder)

    def engine(processes: int, threads: int, turnout: Turnout) -> FleetEngine:
        loss_every = max(1, simulation.rounds // 100)
        return FleetEngine(model, population, turnout, strategy, kernel, processes, threads, loss_every)

    if processes:
        arrangement = (processes, 1)
    else:
        sample = Always(population.size, min(simulation.cohort, 512))
        key = digest(kernel, layout.shapes, simulation.work, sample.goal, strategy.describe())
        arrangement = arrange(key, lambda p, t: engine(p, t, sample), plan, initial, home / "arrangements.json")
    teller = _Teller(simulation, task, population, model, evaluate_every, on_round)
    began, before = time.monotonic(), latest(folder)
    if before is not None and before.round:
        LOG.info("simulate: taken up after round %d of %d (%s)", before.round, simulation.rounds, folder)
        teller.take_up(before)
    with engine(*arrangement, turnout_of(simulation, population, layout)) as running:
        state = train(plan, initial, running, folder, teller, CHECKPOINT_S)
    seconds = time.monotonic() - began
    updates = sum(record.reports for record in state.log[before.round if before else 0 :])
    fleet = None if simulation.always_available else fleet_of(simulation, population)
    return Outcome(
        simulation, fleet, state, teller.quality(state), task.metric, tuple(teller.history), seconds,
        updates / max(seconds, 1e-9), kernel, *arrangement, str(folder),
    )  # fmt: skip


COMPRESSIONS: Mapping[str, tuple[Stage, ...]] = {
    "none": (),
    "8bit": (Quantise(8),),
    "4bit": (Quantise(4),),
    "topk": (ErrorFeedback(TopK(0.1)),),
    "topk-8bit": (ErrorFeedback(TopK(0.1, Quantise(8))),),
    "mask": (RandomMask(0.25),),
    "low-rank": (ErrorFeedback(LowRank(4)),),
}
"""By the name that the command line takes: see `compression.py` and `benchmarks/federated_compression.py`."""


def folder_of(simulation: Simulation, home: Path) -> Path:
    """Where its checkpoints are."""
    return home / "simulations" / digest(asdict(simulation))


def personalise(outcome: Outcome, devices: int, work: LocalWork | None = None) -> Personalisation:
    """The trained model at so many devices, against what each of them makes of it with its own rows.

    work: of the fine-tuning; by default the simulation's own. Where the strategy is Ditto's, its personal models are
    compared too, at devices that took part.

    Raises:
        BadInput: the task's clients hold out no rows of their own.
    """
    simulation, task = outcome.simulation, find_fleet_task(outcome.simulation.task)
    population = task.population(simulation.population, simulation.seed)
    model = drawn_model(task, simulation.seed)
    layout = Layout.of_model(model)
    memory = Remembered.in_context(("personal",), layout.size, outcome.state.context)
    trained = memory.clients("personal")
    clients = np.unique(np.linspace(0, population.size - 1, devices).astype(np.int64))
    if len(trained):
        clients = trained[:devices]
    try:
        return compare(
            kernel_named(outcome.kernel, model, layout),
            model,
            population,
            clients,
            layout.flatten(outcome.state.parameters),
            work or simulation.work,
            simulation.seed,
            untrained=layout.flatten(parameters_of(model)),
            personal=memory.of(clients)["personal"] if len(trained) else None,
        )
    except ValueError as error:
        raise BadInput(f"task {simulation.task}: {error}; take a task whose clients do, such as keyboard") from error


def strategy_of(simulation: Simulation) -> Strategy:
    """The named strategy, with the stages of the named compression."""
    strategy = find_strategy(simulation.strategy, simulation.work, **simulation.overrides)
    if simulation.asynchronous and strategy.rule in BY_ROUNDS:
        raise BadInput(
            f"{simulation.strategy} corrects for what all sites of one round did and has no asynchronous form; "
            "leave --asynchronous out, or take another strategy"
        )
    if simulation.compression not in COMPRESSIONS:
        raise BadInput(f"there is no compression {simulation.compression!r}; there are {', '.join(COMPRESSIONS)}")
    return replace(strategy, stages=(*strategy.stages, *COMPRESSIONS[simulation.compression]))


def turnout_of(simulation: Simulation, population: Population, layout: Layout) -> Turnout:
    """Who reports: whoever is drawn, or whoever comes by the virtual clock of a fleet as Gboard's is described."""
    if simulation.always_available:
        return Always(population.size, simulation.cohort)
    strategy = strategy_of(simulation)
    size_bytes = 4.0 * layout.size
    up_bytes = sent_bytes(strategy.stages, layout)
    shared_bytes = 4.0 * len(strategy.rule.shared(layout.size))
    # One example of the fleet's reference model is some 10,000 parameters' work.
    cost = SessionCost(
        PLAN_BYTES + size_bytes + shared_bytes, up_bytes + shared_bytes, simulation.work.epochs, layout.size / 1e4
    )
    cohort = replace(KEYBOARD_COHORT, goal=simulation.cohort)
    buffering = Buffering(IN_FLIGHT * simulation.cohort) if simulation.asynchronous else None
    return OnClock(fleet_of(simulation, population), cohort, population.counts, cost, buffering)


def fleet_of(simulation: Simulation, population: Population) -> Fleet:
    """The devices on which the population's clients live."""
    return Fleet(population.size, simulation.seed)


def _kernel(simulation: Simulation, model: torch.nn.Module, population: Population, home: Path, folder: Path) -> str:
    """The fastest kernel; a run goes on with the one that it began with, for its bits depend on it."""
    noted = folder / "kernel"
    if noted.is_file():
        return noted.read_text()
    clients = np.arange(min(simulation.cohort, population.size, 64), dtype=np.int64)
    steps = steps_of(population.rows(clients), simulation.work, seeds_of(draw_seed("choose"), clients))
    dtype = torch.bfloat16 if simulation.bfloat16 else torch.float32
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker process
    name = choose(model, Layout.of_model(model), steps, simulation.work, home / "kernels.json", dtype=dtype)
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    noted.write_text(name)
    return name


class _Teller:
    """Evaluates now and then, and says how far the run is."""

    def __init__(
        self,
        simulation: Simulation,
        task: FleetTask,
        population: Population,
        model: torch.nn.Module,
        every: int,
        on_round: Callable[[RoundRecord], None],
    ) -> None:
        self._simulation, self._task, self._population, self._model = simulation, task, population, model
        self._every = every or max(1, simulation.rounds // 10)
        self._on_round = on_round
        self.history: list[tuple[int, float]] = []
        self._told, self._updates = time.monotonic(), 0
        self._last: tuple[int, dict[str, float]] = (-1, {})

    def take_up(self, state: TrainingState) -> None:
        self.history = [(state.round, self.quality(state)[self._task.metric])]

    def __call__(self, state: TrainingState) -> None:
        record = state.log[-1]
        self._updates += record.reports
        if state.round % self._every == 0:
            self.history.append((state.round, self.quality(state)[self._task.metric]))
        now = time.monotonic()
        if now - self._told >= TELL_S:
            figures = [f"{self._updates / (now - self._told):,.0f} client updates/s"]
            if "ended_s" in record.session:
                figures.append(f"day {record.session['ended_s'] / DAY_S:.1f}")
            if self.history:
                figures.append(f"{self._task.metric} {self.history[-1][1]:.3f} after round {self.history[-1][0]:,}")
            LOG.info(
                "simulate: round %s of %s, %s", f"{state.round:,}", f"{self._simulation.rounds:,}", ", ".join(figures)
            )
            self._told, self._updates = now, 0
        self._on_round(record)

    def quality(self, state: TrainingState) -> dict[str, float]:
        if self._last[0] != state.round:
            scores = scores_of(self._model, state.parameters)
            self._last = (state.round, self._task.evaluate(scores, self._population))
        return self._last[1]
