"""The round loop: whatever kills it, the same call again ends with the very same weights."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_sites import LABELLING, initial, make_engine

from pipelines.federated.checkpoints import KEPT, checkpoint, latest
from pipelines.federated.cohort import Cohort
from pipelines.federated.jobs import Answer, Failure, Job, Parameters, TrainAnswer
from pipelines.federated.plan import RoundRecord, TrainingPlan, TrainingState
from pipelines.federated.server_optimizers import Adam
from pipelines.federated.strategy import Strategy
from pipelines.federated.training import train
from pipelines.federated.work import LocalWork

ROUNDS = 20
SIZES = {"a": 8, "b": 13, "c": 5}
# What a process that is killed runs; argv: the sites' folder, the states' folder, seconds a round.
RUN = f"""
import sys, time, torch
from pathlib import Path
from tiny_sites import LABELLING, initial
from test_training import plan_over, sites_in
from pipelines.federated.training import train
torch.set_num_threads(1)
engine, snapshots = sites_in(Path(sys.argv[1]))
train(plan_over(snapshots, {ROUNDS}), initial(), engine, Path(sys.argv[2]), lambda _: time.sleep(float(sys.argv[3])))
"""


def plan_over(snapshots: Mapping[str, tuple[str, ...]], rounds: int) -> TrainingPlan:
    work = LocalWork(epochs=1, batch_size=5, learning_rate=0.1, momentum=0.9)
    return TrainingPlan((LABELLING,), snapshots, rounds, 3, Strategy(work, server=Adam(0.05)), Cohort(goal=2))


def sites_in(root: Path):  # type: ignore[no-untyped-def]
    """The same sites from the same folder, made at the first call."""
    return make_engine(root, SIZES, True)


def newest(folder: Path) -> Path:
    return max(folder.glob("round-*.safetensors"))


def equal(one: TrainingState, other: TrainingState) -> bool:
    return (
        one.round == other.round
        and one.log == other.log
        and one.parameters.keys() == other.parameters.keys()
        and all(torch.equal(one.parameters[n], other.parameters[n]) for n in one.parameters)
        and one.moments.keys() == other.moments.keys()
        and all(torch.equal(one.moments[m][n], other.moments[m][n]) for m in one.moments for n in one.moments[m])
    )


# -- resuming ---------------------------------------------------------------------------------------------------


def test_resume_after_kill_is_bit_identical_to_an_undisturbed_run(tmp_path: Path) -> None:
    engine, snapshots = sites_in(tmp_path / "sites")
    undisturbed = train(plan_over(snapshots, ROUNDS), initial(), engine, tmp_path / "undisturbed")
    folder = tmp_path / "killed"
    tests = Path(__file__).parents[2]
    path = os.pathsep.join([str(tests.parent), str(tests), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen([sys.executable, "-c", RUN, tmp_path / "sites", folder, "0.1"], env=environment)
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
    end = train(plan_over(snapshots, ROUNDS), initial(), engine, folder, lambda state: rounds.append(state.round))
    assert rounds == list(range(interrupted.round + 1, ROUNDS + 1)), "rounds that were done are not done again"
    for name, tensor in undisturbed.parameters.items():
        assert tensor.numpy().tobytes() == end.parameters[name].numpy().tobytes()
    assert equal(end, undisturbed)


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """An engine, its plan, the state after 6 rounds and the checkpoints after 4."""
    root = tmp_path_factory.mktemp("halfway")
    engine, snapshots = sites_in(root / "sites")
    end = train(plan_over(snapshots, 6), initial(), engine, root / "whole")
    train(plan_over(snapshots, 4), initial(), engine, root / "half")
    files = {path.name: path.read_bytes() for path in (root / "half").iterdir()}
    return engine, plan_over(snapshots, 6), end, files


@pytest.fixture
def half(halfway, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    for name, content in halfway[3].items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def damage_truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damage_flipped(data: bytes) -> bytes:
    return data[:-20] + bytes([data[-20] ^ 0xFF]) + data[-19:]


def damage_round(data: bytes) -> bytes:
    assert data.count(b'"round":"4"') == 1
    return data.replace(b'"round":"4"', b'"round":"5"')


@pytest.mark.parametrize("damage", [damage_truncated, damage_flipped, damage_round, lambda _: b"", lambda _: b"{" * 99])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(halfway, half, damage, caplog) -> None:  # type: ignore[no-untyped-def]
    engine, plan, end, _ = halfway
    last = newest(half)
    last.write_bytes(damage(last.read_bytes()))
    with caplog.at_level(logging.WARNING):
        state = latest(half)
    assert state is not None
    assert state.round == 3
    assert last.name in caplog.text
    assert equal(train(plan, initial(), engine, half), end)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_single_damaged_byte_goes_unnoticed(halfway, half: Path, data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    content = bytearray(halfway[3]["round-000004.safetensors"])
    whole = [latest_of(halfway[3], upto, half) for upto in (3, 4)]
    header = 8 + int.from_bytes(content[:8], "little")
    place = data.draw(st.one_of(st.integers(0, header - 1), st.integers(0, len(content) - 1)))
    content[place] ^= data.draw(st.integers(1, 255))
    (half / "round-000004.safetensors").write_bytes(bytes(content))
    found = latest(half)
    assert found is not None
    assert any(equal(found, state) for state in whole)


def latest_of(files: Mapping[str, bytes], upto: int, folder: Path) -> TrainingState:
    for name, content in files.items():
        (folder / name).write_bytes(content)
        if name > f"round-{upto:06d}.safetensors":
            (folder / name).unlink()
    found = latest(folder)
    assert found is not None
    assert found.round == upto
    return found


def test_with_all_checkpoints_damaged_the_run_starts_again_and_ends_the_same(halfway, half: Path) -> None:  # type: ignore[no-untyped-def]
    engine, plan, end, _ = halfway
    for path in half.iterdir():
        path.write_bytes(damage_truncated(path.read_bytes()))
    assert latest(half) is None
    assert equal(train(plan, initial(), engine, half), end)


def test_a_partly_written_checkpoint_is_no_checkpoint(halfway, half: Path) -> None:  # type: ignore[no-untyped-def]
    engine, plan, end, files = halfway
    (half / "round-000005.safetensors.partial").write_bytes(files["round-000004.safetensors"][:100])
    state = latest(half)
    assert state is not None
    assert state.round == 4
    assert equal(train(plan, initial(), engine, half), end)


def test_a_finished_run_is_not_run_again(halfway, half: Path) -> None:  # type: ignore[no-untyped-def]
    engine, plan, end, _ = halfway
    train(plan, initial(), engine, half)
    rounds: list[TrainingState] = []
    assert equal(train(plan, initial(), engine, half, rounds.append), end)
    assert rounds == []


def test_an_empty_or_missing_folder_has_no_latest_state(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "nowhere") is None


def test_checkpoints_are_bounded_in_number_and_hold_the_whole_state(tmp_path: Path) -> None:
    parameters: Parameters = {"w": torch.randn(3, 2), "b": torch.randn(())}
    moments = Adam().start(parameters)
    for number in range(1, 12):
        log = tuple(RoundRecord(i, 3, 2, 40.0, 0.1, "too few" if i % 2 else None) for i in range(number))
        state = TrainingState(number, parameters, moments, log)
        checkpoint(tmp_path, state)
        found = latest(tmp_path)
        assert found is not None
        assert equal(found, state)
        assert len(list(tmp_path.iterdir())) <= KEPT


# -- rounds that fail -------------------------------------------------------------------------------------------


class Answers:
    """An engine whose sites answer what a test says."""

    def __init__(self, by_round: Mapping[int, Mapping[str, Answer | Failure]]) -> None:
        self.by_round = by_round
        self.population = sorted(by_round[1])

    def ask(self, jobs: Mapping[str, Job]) -> Iterator[tuple[str, Answer | Failure]]:
        for name, job in jobs.items():
            yield name, self.by_round[job.round][name]  # type: ignore[union-attr]


def says(value: float, examples: float = 10.0) -> TrainAnswer:
    return TrainAnswer({"w": torch.full((2,), value)}, examples, 0.5)


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
