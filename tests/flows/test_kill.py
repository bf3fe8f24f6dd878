"""`kill -9` of the process that trains, then the same command again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipelines.federated.checkpoints import latest

QUICK = {
    "FEDLOOP_TRAINING__ROUNDS": "12",
    "FEDLOOP_LABELS__LLOYD_ROUNDS": "2",
    "FEDLOOP_LABELS__BUDGET_SHARE": "0.04",
}


def command(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "train", "digits"],
        env=os.environ | QUICK | {"FEDLOOP_HOME": str(home), "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def states(home: Path) -> list[Path]:
    return sorted(home.glob("live/digits/states/*/round-*.safetensors"))


def test_train_goes_on_at_the_last_round_after_kill_9_and_ends_with_identical_weights(tmp_path: Path) -> None:
    undisturbed = command(tmp_path / "undisturbed")
    killed = command(tmp_path / "killed")
    deadline = time.monotonic() + 120
    while len(states(tmp_path / "killed")) < 2 and time.monotonic() < deadline:
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    reached = latest(states(tmp_path / "killed")[-1].parent)
    assert reached is not None and reached.round < 12, "it was killed too late to prove anything"

    again = command(tmp_path / "killed")
    said = again.communicate(timeout=180)[0]
    assert again.returncode == 0, said
    assert "interrupted run is taken up after round" in said
    assert undisturbed.wait(timeout=180) == 0

    resumed, whole = (latest(states(tmp_path / name)[-1].parent) for name in ("killed", "undisturbed"))
    assert resumed is not None and whole is not None
    assert resumed.round == whole.round == 12 and resumed.log == whole.log
    for name, tensor in whole.parameters.items():
        assert resumed.parameters[name].numpy().tobytes() == tensor.numpy().tobytes(), name
