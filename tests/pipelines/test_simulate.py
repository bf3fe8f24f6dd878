"""`simulate`: any task on a simulated fleet; killed and called again, it ends with the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from models import keyboard
from models.errors import BadInput
from models.fleet_task import find_fleet_task
from models.keyboard import Keyboard
from pipelines.federated.checkpoints import latest
from pipelines.federated.engines.turnout import OnClock
from pipelines.federated.layout import Layout
from pipelines.federated.plan import RoundRecord
from pipelines.simulate import COMPRESSIONS, folder_of, simulate, simulation_of, turnout_of

# argv: home. Slow enough to be killed in the middle, and with a checkpoint after every round.
KILLED = """
import sys, time
from pathlib import Path
from pipelines import simulate as s
s.CHECKPOINT_S = 0.0
sim = s.simulation_of("keyboard", 2000, 20, 12, {}, strategy="scaffold")
s.simulate(sim, Path(sys.argv[1]), processes=2, on_round=lambda _: time.sleep(0.1))
"""


def test_a_killed_simulation_called_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    simulation = simulation_of("keyboard", 2000, 20, 12, {}, strategy="scaffold")
    undisturbed = simulate(simulation, tmp_path / "undisturbed", processes=2)
    folder = folder_of(simulation, tmp_path / "killed")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "killed"], env=environment)
    try:
        deadline = time.monotonic() + 120
        while not list(folder.glob("round-000004*.safetensors")):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    interrupted = latest(folder)
    assert interrupted is not None
    assert 4 <= interrupted.round < 12
    rounds: list[RoundRecord] = []
    end = simulate(simulation, tmp_path / "killed", processes=2, on_round=rounds.append)
    assert len(rounds) == 12 - interrupted.round
    for name, tensor in undisturbed.state.parameters.items():
        assert tensor.numpy().tobytes() == end.state.parameters[name].numpy().tobytes()
    assert end.state.log == undisturbed.state.log
    assert end.quality == undisturbed.quality


@pytest.mark.parametrize("choices", [{}, {"asynchronous": True}, {"always_available": True, "compression": "8bit"}])
def test_a_fleet_learns(tmp_path: Path, choices: dict[str, object]) -> None:
    simulation = simulation_of("keyboard", 3000, 30, 10, {}, **choices)
    told = simulate(simulation, tmp_path, processes=1, evaluate_every=5)
    assert [number for number, _ in told.history] == [5, 10]
    assert told.quality["auc"] == told.history[-1][1] > 0.6
    assert all(record.reports >= 24 for record in told.state.log if record.abandoned is None)
    assert any(record.abandoned is None for record in told.state.log)


def test_an_image_task_is_a_fleets_task_too(tmp_path: Path) -> None:
    """And learns: this model's accuracy needs more rounds to show it, its loss does not."""
    simulation = simulation_of("digits", 300, 10, 8, {"learning_rate": 0.5, "batch_size": 8})
    told = simulate(simulation, tmp_path, processes=1, evaluate_every=1)
    assert told.metric == "accuracy"
    losses = [record.loss for record in told.state.log if record.abandoned is None]
    assert min(losses[-3:]) < losses[0]


def test_a_compression_shows_in_the_bytes_that_devices_send() -> None:
    task = find_fleet_task("mnist")
    layout = Layout.of_model(task.build_model())
    population = Keyboard(1000)  # whose rows they would be does not matter
    sent = {}
    for name in COMPRESSIONS:
        turnout = turnout_of(simulation_of("keyboard", 1000, 10, 1, {}, compression=name), population, layout)
        assert isinstance(turnout, OnClock)
        sent[name] = turnout.cost.up_bytes
    assert sent["none"] == 4 * layout.size
    assert all(size < 0.3 * sent["none"] for name, size in sent.items() if name != "none")


@pytest.mark.parametrize("strategy", ["scaffold", "fednova"])
def test_what_is_defined_by_rounds_cannot_be_asynchronous(tmp_path: Path, strategy: str) -> None:
    with pytest.raises(BadInput, match="asynchronous"):
        simulate(simulation_of("keyboard", 1000, 10, 1, {}, strategy=strategy, asynchronous=True), tmp_path)


def test_the_result_does_not_depend_on_the_number_of_processes_beyond_rounding(tmp_path: Path) -> None:
    simulation = simulation_of("keyboard", 5000, 30, 5, {})
    one, two = (simulate(simulation, tmp_path / str(n), processes=n).state for n in (1, 2))
    assert one.log[-1].session == two.log[-1].session, "who takes part is a matter of the seed alone"
    assert all(torch.allclose(one.parameters[n], two.parameters[n], atol=1e-6) for n in one.parameters)


def test_memory_does_not_depend_on_the_population(tmp_path: Path) -> None:
    """What a run keeps, by its checkpoint: the same for 10^5 and 10^9 devices."""
    sizes = []
    for population in (10**5, 10**9):
        simulation = simulation_of("keyboard", population, 50, 3, {})
        folder = Path(simulate(simulation, tmp_path, processes=1).folder)
        sizes.append(max(path.stat().st_size for path in folder.glob("*.safetensors")))
    assert sizes[1] < 1.2 * sizes[0]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"task": "keybord"}, "keyboard"),
        ({"population": 10, "cohort": 11}, "more than the 10 devices"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"cohort": -1}, "--cohort is -1"),
    ],
)
def test_a_wrong_number_or_name_is_a_sentence(given: dict[str, object], says: str) -> None:
    asked = {"task": "keyboard", "population": 1000, "cohort": 10, "rounds": 1, "work": {}} | given
    with pytest.raises(BadInput, match=says):
        simulation_of(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(("choices", "says"), [({"strategy": "fedmagic"}, "fedprox"), ({"compression": "zip"}, "8bit")])
def test_an_unknown_choice_lists_those_there_are(tmp_path: Path, choices: dict[str, str], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        simulate(simulation_of("keyboard", 1000, 10, 1, {}, **choices), tmp_path, processes=1)


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.BatchNorm1d(64)], ids=lambda layer: type(layer).__name__)
def test_a_model_with_state_or_chance_in_its_forward_pass_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: nn.Module
) -> None:
    def build_model() -> nn.Module:
        return nn.Sequential(deepcopy(layer), nn.Linear(64, 1))

    monkeypatch.setattr(keyboard, "TASK", replace(keyboard.TASK, build_model=build_model))
    with pytest.raises(BadInput, match=f"task keyboard: {type(layer).__name__} keeps state or draws"):
        simulate(simulation_of("keyboard", 100, 5, 1, {}), tmp_path, processes=1)


def test_the_command_writes_the_figures(tmp_path: Path) -> None:
    fedloop = Path(sys.executable).with_name("fedloop")
    command = [
        fedloop,
        "simulate",
        "keyboard",
        "--population",
        "3000",
        "--cohort",
        "20",
        "--rounds",
        "3",
        "--processes",
        "1",
    ]
    environment = {**os.environ, "FEDLOOP_HOME": str(tmp_path / "home")}
    files = ["--json", tmp_path / "figures.json", "--plot", tmp_path / "fleet.png"]
    done = subprocess.run([*map(str, [*command, *files])], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["rounds"]["committed"] + figures["rounds"]["abandoned"] == 3
    assert figures["client_updates_per_s"] > 0
    assert figures["simulated_days"] > 0
    assert figures["memory"]["peak_mb"] > 50
    assert 0.4 < figures["quality"]["auc"] < 1
    assert (tmp_path / "fleet.png").stat().st_size > 10_000
    again = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    assert "taken up after round 3 of 3" in again.stdout + again.stderr
