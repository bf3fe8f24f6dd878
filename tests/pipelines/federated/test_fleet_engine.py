"""The fleet engine: however a cohort is cut into chunks and processes, whatever stops the run, the result is one."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sites import LABELLING, TINY, initial, linear_model, make_engine

from models.errors import FedloopError
from models.images import decode_png
from models.keyboard import Keyboard, build_model
from models.population import Partition, Population, partition
from pipelines.federated.buffered import Buffering
from pipelines.federated.checkpoints import checkpoint, latest
from pipelines.federated.clock import Clock
from pipelines.federated.cohort import KEYBOARD_COHORT, Abandoned
from pipelines.federated.compression import ErrorFeedback
from pipelines.federated.engines.fleet import FleetContext, FleetEngine
from pipelines.federated.engines.turnout import Always, Called, OnClock, Turnout
from pipelines.federated.fleet import Fleet
from pipelines.federated.jobs import Parameters
from pipelines.federated.plan import TrainingPlan, TrainingState
from pipelines.federated.reducers import MEDIAN
from pipelines.federated.scaffold import SCAFFOLD
from pipelines.federated.server_optimizers import Adam
from pipelines.federated.sessions import SessionCost
from pipelines.federated.sparse import TopK
from pipelines.federated.strategies import fedavg
from pipelines.federated.strategy import Strategy
from pipelines.federated.training import begin, run_round, train
from pipelines.federated.work import LocalWork

WORK = LocalWork(batch_size=8, learning_rate=0.2)
SIZE = 3000


def weights() -> Parameters:
    torch.manual_seed(0)
    return {name: p.detach().clone() for name, p in build_model().named_parameters()}


def on_clock(goal: int = 20, concurrency: int = 0) -> Turnout:
    population, cohort = Keyboard(SIZE, 1), replace(KEYBOARD_COHORT, goal=goal)
    # Long enough for some to be at work while others report.
    cost = SessionCost(5000, 260, work=40.0 if concurrency else 1.0)
    return OnClock(Fleet(SIZE, 1), cohort, population.counts, cost, Buffering(concurrency) if concurrency else None)


def run(
    folder: Path,
    rounds: int,
    strategy: Strategy | None = None,
    turnout: Turnout | None = None,
    processes: int = 1,
    kernel: str = "plain",
    chunk: int | None = None,
    population: Population | None = None,
) -> TrainingState:
    strategy = strategy or fedavg(WORK)
    plan = TrainingPlan((), {}, rounds, 7, strategy)
    engine = FleetEngine(
        build_model(), population or Keyboard(SIZE, 1), turnout or Always(SIZE, 23), strategy, kernel, processes
    )
    if chunk:
        engine._workers._trainer.kernel.chunk = chunk  # type: ignore[misc]
    with engine:
        return train(plan, weights(), engine, folder)


def distance(one: TrainingState, other: TrainingState) -> float:
    return max(float((one.parameters[n] - other.parameters[n]).abs().max()) for n in one.parameters)


def same_bits(one: TrainingState, other: TrainingState) -> bool:
    return distance(one, other) == 0.0 and one.log == other.log


@pytest.mark.parametrize(
    ("processes", "chunk", "kernel"), [(2, None, "plain"), (1, 5, "plain"), (1, None, "compiled-8")]
)
def test_chunks_processes_and_kernels_change_the_result_by_rounding_alone(
    tmp_path: Path, processes: int, chunk: int | None, kernel: str
) -> None:
    whole = run(tmp_path / "whole", 4)
    other = run(tmp_path / "other", 4, processes=processes, chunk=chunk, kernel=kernel)
    assert distance(whole, other) < 1e-6
    assert distance(whole, TrainingState(0, weights(), {})) > 0.01, "nothing was learned"
    assert [r.reports for r in other.log] == [23] * 4


STRATEGIES = {
    "adam": Strategy(WORK, server=Adam(0.05)),
    "scaffold": Strategy(WORK, rule=SCAFFOLD),
    "feedback": Strategy(WORK, stages=(ErrorFeedback(TopK(0.1)),)),
}


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("turnout", ["always", "clock", "buffered"])
def test_a_run_taken_up_from_any_checkpoint_ends_with_the_same_bits(tmp_path: Path, name: str, turnout: str) -> None:
    def who() -> Turnout:
        # A fleet so small that clients come again: what they remember matters.
        return {"always": Always(40, 15), "clock": on_clock(), "buffered": on_clock(concurrency=60)}[turnout]

    whole = run(tmp_path / "whole", 6, STRATEGIES[name], who(), 2)
    for stop in (1, 4):
        folder = tmp_path / str(stop)
        strategy = STRATEGIES[name]
        engine = FleetEngine(build_model(), Keyboard(SIZE, 1), who(), strategy, "plain", 2)
        with engine:
            state = begin(TrainingPlan((), {}, 6, 7, strategy), weights())
            for _ in range(stop):
                state = run_round(TrainingPlan((), {}, 6, 7, strategy), state, engine)
        checkpoint(folder, state)
        assert same_bits(run(folder, 6, strategy, who(), 2), whole)


def test_what_a_checkpoint_holds_is_what_the_engine_had(tmp_path: Path) -> None:
    state = run(tmp_path, 3, STRATEGIES["scaffold"], on_clock(concurrency=60))
    assert isinstance(state.context, FleetContext)
    found = latest(tmp_path)
    assert found is not None
    assert found.context.keys() == dict(state.context).keys()
    for name, tensor in state.context.items():
        assert tensor.numpy().tobytes() == found.context[name].numpy().tobytes(), name
    assert torch.equal(found.shared, state.shared)
    assert any(name.startswith("memory/control") for name in found.context)
    assert any(name.startswith("versions/") for name in found.context), "devices still work on earlier weights"


def test_an_abandoned_round_leaves_the_weights_alone_and_time_goes_on(tmp_path: Path) -> None:
    # More than such a fleet ever has ready together.
    hopeless = OnClock(
        Fleet(SIZE, 1), replace(KEYBOARD_COHORT, goal=1500), Keyboard(SIZE, 1).counts, SessionCost(5000, 260)
    )
    state = run(tmp_path, 2, turnout=hopeless)
    assert distance(state, TrainingState(0, weights(), {})) == 0.0
    assert all(record.abandoned and "ready together" in record.abandoned for record in state.log)
    assert isinstance(state.context, FleetContext)
    assert state.context.clock.now_s >= 2 * KEYBOARD_COHORT.patience_s - 1


class Poisoned(Keyboard):
    """Client 3's features are not numbers."""

    def rows(self, clients):  # type: ignore[no-untyped-def]
        rows = super().rows(clients)
        for place in np.flatnonzero(clients == 3):
            rows.client(int(place))[0].fill_(float("nan"))
        return rows


def test_a_client_whose_update_is_not_finite_counts_for_nothing(tmp_path: Path) -> None:
    state = run(tmp_path, 2, turnout=Always(10, 10), population=Poisoned(SIZE, 1))
    assert [record.reports for record in state.log] == [9, 9]
    assert all(bool(tensor.isfinite().all()) for tensor in state.parameters.values())


def test_a_reducer_that_needs_every_update_gets_every_update(tmp_path: Path) -> None:
    one, other = (
        run(tmp_path / str(processes), 3, Strategy(WORK, reducer=MEDIAN), processes=processes, chunk=4)
        for processes in (1, 2)
    )
    assert distance(one, other) < 1e-6


def test_a_worker_that_dies_is_a_sentence() -> None:
    strategy = fedavg(WORK)
    plan = TrainingPlan((), {}, 5, 7, strategy)
    engine = FleetEngine(build_model(), Keyboard(SIZE, 1), Always(SIZE, 23), strategy, "plain", 2)
    with engine:
        state = run_round(plan, begin(plan, weights()), engine)
        process, _ = engine._workers._others[0]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with pytest.raises(FedloopError, match="worker process"):
            run_round(plan, state, engine)


def test_staleness_weighs_as_in_fedbuff() -> None:
    turnout, clock = on_clock(goal=10, concurrency=60), Clock()
    stale = 0
    for number in range(1, 9):
        called, clock = turnout.call(7, number, clock)
        assert isinstance(called, Called)
        if isinstance(called.outcome, Abandoned):
            continue
        assert called.versions is not None
        assert called.importance is not None
        late = number - 1 - called.versions
        assert np.allclose(called.importance, 1 / np.sqrt(1 + late))
        # The reducer's mean of importance-weighted updates, scaled, is the sum divided by their number.
        assert called.scale == pytest.approx(called.importance.sum() / len(late))
        stale += int((late > 0).sum())
    assert stale > 0, "nobody was late: the test shows nothing"


def test_simulated_clients_and_real_sites_run_the_same_training(tmp_path: Path) -> None:
    """Three sites with stores, and the same rows as a population: one full-batch step a round leaves no room for
    different draws, so the models are the same.
    """
    work = LocalWork(batch_size=0, epochs=2, learning_rate=0.3, momentum=0.5)
    engine, snapshots = make_engine(tmp_path, {"a": 7, "b": 20, "c": 13}, stacked=False)
    plan = TrainingPlan((LABELLING,), snapshots, 4, 9, fedavg(work))
    sites = train(plan, initial(), engine, tmp_path / "sites-states")

    images, labels, owner = [], [], []
    for number, (name, site) in enumerate(sorted(engine.sites.items())):
        table = site.store.rows(snapshots[name], "train")
        images += [decode_png(png, TINY.input).transpose(2, 0, 1) for png in table["png"]]
        labels += site.store.truth(table["row_id"]).tolist()
        owner += [number] * len(table)
    dealt: Partition = partition(np.stack(images), np.array(labels), np.array(owner))
    with FleetEngine(linear_model(), dealt, Always(3, 3), plan.strategy, "plain") as fleet:
        simulated = train(plan, initial(), fleet, tmp_path / "fleet-states")
    assert distance(sites, simulated) < 1e-5
    assert [r.examples for r in sites.log] == [r.examples for r in simulated.log]
