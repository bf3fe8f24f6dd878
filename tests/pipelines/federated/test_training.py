"""The round loop: whatever kills it, the same call again ends with the very same weights."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import RULES, TRAIL, equal, plan_over, sites_in
from tiny_sites import initial

from pipelines.federated import training
from pipelines.federated.checkpoints import checkpoint, latest
from pipelines.federated.cohort import Abandoned, Cohort, Committed
from pipelines.federated.engines.asking import collect_by_asking
from pipelines.federated.jobs import Answer, Failure, Job, TrainAnswer, TrainJob
from pipelines.federated.plan import Context, Gathered, TrainingPlan, TrainingState
from pipelines.federated.reducers import MEAN
from pipelines.federated.rules import LocalRule
from pipelines.federated.scaffold import SCAFFOLD
from pipelines.federated.server_optimizers import Adam
from pipelines.federated.stages import ClipByNorm
from pipelines.federated.strategy import Strategy
from pipelines.federated.training import begin, run_round, train

ROUNDS = 20
# What a process that is killed runs; argv: the sites' folder, the states' folder, seconds a round, the rule.
RUN = f"""
import sys, time, torch
from pathlib import Path
from tiny_runs import RULES, plan_over, sites_in
from tiny_sites import initial
from pipelines.federated.training import train
torch.set_num_threads(1)
engine, snapshots = sites_in(Path(sys.argv[1]))
plan = plan_over(snapshots, {ROUNDS}, RULES[sys.argv[4]])
train(plan, initial(), engine, Path(sys.argv[2]), lambda _: time.sleep(float(sys.argv[3])))
"""
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


# -- resuming ---------------------------------------------------------------------------------------------------


@each_rule
def test_resume_after_kill_is_bit_identical_to_an_undisturbed_run(tmp_path: Path, rule: LocalRule) -> None:
    engine, snapshots = sites_in(tmp_path / "sites")
    plan = plan_over(snapshots, ROUNDS, rule)
    undisturbed = train(plan, initial(), engine, tmp_path / "undisturbed")
    folder = tmp_path / "killed"
    tests = Path(__file__).parents[2]
    path = os.pathsep.join([str(tests.parent), str(tests)])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", RUN, tmp_path / "sites", folder, "0.1", rule.name]
    process = subprocess.Popen(command, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not list(folder.glob("round-000003*.safetensors")):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    interrupted = latest(folder)
    assert interrupted is not None
    assert 3 <= interrupted.round < ROUNDS
    rounds: list[int] = []
    end = train(plan, initial(), engine, folder, lambda state: rounds.append(state.round))
    assert rounds == list(range(interrupted.round + 1, ROUNDS + 1)), "rounds that were done are not done again"
    for name, tensor in undisturbed.parameters.items():
        assert tensor.numpy().tobytes() == end.parameters[name].numpy().tobytes()
    assert equal(end, undisturbed)


class Killed(Exception):
    """What a test raises in the middle of a run."""


@each_rule
@pytest.mark.parametrize("every_s", [0.0, 3.0, 1e9])
def test_seconds_between_checkpoints_change_nothing_in_the_result(
    tmp_path: Path, rule: LocalRule, every_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a clock that ticks a second at every look; killed in round 8, and again in round 10."""
    engine, snapshots = sites_in(tmp_path / "sites")
    plan = plan_over(snapshots, 11, rule)
    undisturbed = train(plan, initial(), engine, tmp_path / "undisturbed")
    ticks = itertools.count(0.0)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    saved: list[int] = []

    def save(folder: Path, state: TrainingState) -> None:
        checkpoint(folder, state)
        saved.append(state.round)

    monkeypatch.setattr(training, "checkpoint", save)
    folder = tmp_path / "states"
    for kill in (8, 10):
        seen: list[int] = []
        before = saved[-1] if saved else 0

        def stop(state: TrainingState, kill: int = kill, seen: list[int] = seen) -> None:
            seen.append(state.round)
            if state.round == kill:
                raise Killed

        with pytest.raises(Killed):
            train(plan, initial(), engine, folder, stop, every_s)
        assert seen == list(range(before + 1, kill + 1)), "the rounds since the last checkpoint are done again"
    assert equal(train(plan, initial(), engine, folder, every_s=every_s), undisturbed)
    expected = {0.0: list(range(1, 12)), 3.0: [3, 6, 9, 11], 1e9: [11]}
    assert saved == expected[every_s], "not more often than asked, and at the end"


@dataclass
class Ticking:
    """An engine that keeps a clock between rounds; each third round is abandoned, the others bring its time."""

    def collect(self, plan: TrainingPlan, state: TrainingState) -> tuple[Gathered, Context]:
        now = state.context.get("clock", torch.zeros(1, dtype=torch.float64)) + 0.1 * state.round + 1
        reduction = MEAN.add(MEAN.start(), now.float().sin().expand(2, 2), torch.ones(2, dtype=torch.float64))
        outcome = Abandoned("nobody came") if state.round % 3 == 2 else Committed(2)
        session = {"clock_s": now.item()}
        return Gathered(outcome, reduction, 2, 2, 5.0, 1.0, 0.5, scale=0.5, session=session), {"clock": now}


def test_what_an_engine_and_a_rules_server_half_keep_survives_a_stop_at_any_round(tmp_path: Path) -> None:
    plan = TrainingPlan((), {}, 8, 0, Strategy(rule=TRAIL, server=Adam(0.1)))
    states: list[TrainingState] = []
    end = train(plan, {"w": torch.zeros(2)}, Ticking(), tmp_path / "whole", states.append)
    assert end.abandoned == (3, 6)
    assert end.context["clock"].item() == pytest.approx(8 + 0.1 * 28)
    assert end.shared.any()
    for state in states:
        folder = tmp_path / f"from-{state.round}"
        checkpoint(folder, state)
        assert equal(train(plan, {"w": torch.ones(2)}, Ticking(), folder), end)


def test_an_abandoned_round_moves_the_engines_clock_and_nothing_else(tmp_path: Path) -> None:
    plan = TrainingPlan((), {}, 3, 0, Strategy(rule=TRAIL, server=Adam(0.1)))
    states: list[TrainingState] = []
    train(plan, {"w": torch.zeros(2)}, Ticking(), tmp_path, states.append)
    before, after = states[1:]
    assert after.log[-1].abandoned == "nobody came"
    assert after.context["clock"] > before.context["clock"]
    assert after.log[-1].session == {"clock_s": after.context["clock"].item()}
    assert equal(replace(after, round=2, log=before.log, context=before.context), before)


# -- rounds -----------------------------------------------------------------------------------------------------


class Answers:
    """An engine whose sites answer what a test says."""

    def __init__(self, by_round: Mapping[int, Mapping[str, Answer | Failure]]) -> None:
        self.by_round = by_round
        self.population = sorted(by_round[1])
        self.asked: list[TrainJob] = []

    def collect(self, plan: TrainingPlan, state: TrainingState) -> tuple[Gathered, Context]:
        return collect_by_asking(self, plan, state)

    def ask(self, jobs: Mapping[str, Job]) -> Iterator[tuple[str, Answer | Failure]]:
        for name, job in jobs.items():
            assert isinstance(job, TrainJob)
            self.asked.append(job)
            yield name, self.by_round[job.round][name]


def says(value: float, examples: float = 10.0, weight: float | None = None, size: int = 2) -> TrainAnswer:
    return TrainAnswer(torch.full((size,), value), examples, examples if weight is None else weight, 0.5)


def run(tmp_path: Path, by_round: Mapping[int, Mapping[str, Answer | Failure]]) -> TrainingState:
    plan = TrainingPlan(("l",), dict.fromkeys(by_round[1], ("s",)), len(by_round), 0, cohort=Cohort(minimum=0.6))
    return train(plan, {"w": torch.zeros(2)}, Answers(by_round), tmp_path)


def test_an_abandoned_round_leaves_everything_but_the_log_untouched(tmp_path: Path) -> None:
    good = {"a": says(1.0), "b": says(1.0), "c": says(1.0)}
    bad = {"a": says(5.0), "b": Failure("b: no power"), "c": Failure("c: no disk")}
    state = run(tmp_path, {1: good, 2: bad, 3: good})
    assert torch.equal(state.parameters["w"], torch.full((2,), 2.0))
    assert [record.abandoned is not None for record in state.log] == [False, True, False]
    assert state.log[1].abandoned == "1 of the 2 reports needed came back (b: no power; c: no disk)"
    assert state.round == 3


def test_moments_survive_an_abandoned_round(tmp_path: Path) -> None:
    good, bad = {"a": says(1.0)}, {"a": Failure("a: no power")}
    plans = [TrainingPlan(("l",), {"a": ("s",)}, n, 0, Strategy(server=Adam(0.1))) for n in (1, 2)]
    engine = Answers({1: good, 2: bad})
    before = train(plans[0], {"w": torch.zeros(2)}, engine, tmp_path)
    after = train(plans[1], {"w": torch.zeros(2)}, engine, tmp_path)
    assert equal(after, replace(before, round=2, log=after.log))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Failure("c: no disk"), "no disk"),
        (says(9.0, examples=0.0), "c has no labelled rows"),
        (says(float("nan")), "c: the update is not finite"),
        (says(float("inf")), "c: the update is not finite"),
        (says(9.0, weight=float("nan")), "c: the update is not finite"),
    ],
)
def test_a_round_goes_on_without_a_site_that_has_nothing_to_say(
    tmp_path: Path, answer: Answer | Failure, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        state = run(tmp_path, {1: {"a": says(1.0, 30.0), "b": says(4.0, 10.0), "c": answer}})
    assert torch.allclose(state.parameters["w"], torch.full((2,), 1.75))
    assert state.log[0].reports == 2
    assert state.log[0].examples == 40.0
    assert words in caplog.text


def test_sites_without_snapshots_are_not_asked(tmp_path: Path) -> None:
    engine = Answers({1: {"a": says(1.0), "b": says(3.0)}})
    plan = TrainingPlan(("l",), {"a": ("s",), "b": ()}, 1, 0)
    state = train(plan, {"w": torch.zeros(2)}, engine, tmp_path)
    assert state.log[0].asked == 1
    assert torch.equal(state.parameters["w"], torch.ones(2))


def test_sites_count_by_what_their_rule_says_and_are_logged_by_their_examples(tmp_path: Path) -> None:
    answers = {"a": says(1.0, 30.0, weight=1.0), "b": replace(says(4.0, 10.0, weight=1.0), loss=1.5)}
    state = run(tmp_path, {1: answers})
    assert torch.equal(state.parameters["w"], torch.full((2,), 2.5))
    assert (state.log[0].examples, state.log[0].loss) == (40.0, 0.75)


def test_a_site_learns_which_rounds_had_no_effect_and_what_the_server_sends_along(tmp_path: Path) -> None:
    good, bad = {"a": says(1.0), "b": says(3.0)}, {"a": says(1.0), "b": Failure("b: no power")}
    plan = TrainingPlan(("l",), dict.fromkeys("ab", ("s",)), 5, 0, Strategy(rule=TRAIL), Cohort(minimum=1.0))
    engine = Answers({1: good, 2: bad, 3: good, 4: bad, 5: good})
    train(plan, {"w": torch.zeros(2)}, engine, tmp_path)
    jobs = engine.asked[::2]
    assert [job.abandoned for job in jobs] == [(), (), (2,), (2,), (2, 4)]
    assert [job.shared[0].item() for job in jobs] == pytest.approx([0, 2, 2, 2.2, 2.2])
    assert len({job.run for job in engine.asked}) == 1
    assert [job.parameters["w"][0].item() for job in jobs] == pytest.approx([0, 2, 2, 4.2, 4.2])


@dataclass(frozen=True)
class Halved(ClipByNorm):
    """A stage with a half at the server: sites send half of their update."""

    bound: float = 1.0

    def on_server(self, update: torch.Tensor) -> torch.Tensor:
        return 2 * update


def test_the_servers_half_of_stages_is_for_the_update_and_the_rules_for_all() -> None:
    answers = {name: replace(says(0.0), update=torch.tensor([1.0, 2.0, 3.0, 4.0])) for name in "ab"}
    plan = TrainingPlan(
        ("l",), dict.fromkeys("abcd", ("s",)), 1, 0, Strategy(rule=SCAFFOLD, stages=(Halved(),)), Cohort(goal=2)
    )
    engine = Answers({1: answers | dict.fromkeys("cd", answers["a"])})
    state = run_round(plan, begin(plan, {"w": torch.ones(2)}), engine)
    assert state.parameters["w"].tolist() == [3.0, 5.0]
    assert state.shared.tolist() == [1.5, 2.0], "half of the sites reported"
