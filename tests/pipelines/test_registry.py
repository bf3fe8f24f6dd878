from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import artifact
from models.errors import BadInput, Missing
from models.images import to_tensor
from pipelines import registry
from pipelines.registry import CHALLENGER, CHAMPION, Version
from pipelines.settings import Settings, load_settings
from pipelines.tracking import Run, connection

Register = Callable[..., Version]


def parameters(settings: Settings) -> dict[str, torch.Tensor]:
    return dict(settings.task.build_model().state_dict())


def test_a_version_shows_signature_example_tags_figures_and_no_pickle(settings: Settings, tmp_path: Path) -> None:
    summary, plot = tmp_path / "any-name.npz", tmp_path / "plot.png"
    np.savez(summary, centroids=np.eye(3))
    plot.write_bytes(b"not really a png")
    weights = parameters(settings)
    made = registry.register(
        settings,
        parameters=weights,
        key="sha:1",
        tags={"snapshots.site-1": "abc", "rounds": "30"},
        figures={"gate.accuracy": 0.9512345678, "gate.nothing": float("nan")},
        summary=summary,
        example=np.full((2, 8, 8, 1), 51, dtype=np.uint8),
        extra_files=[plot],
        run_id=Run.start(settings, "training", "sha:1").run_id,
    )
    assert made.number == 1
    assert not made.reused
    assert registry.by_alias(settings, CHALLENGER) == made
    assert made.tags["snapshots.site-1"] == "abc"
    assert made.tags["gate.accuracy"] == "0.951235"
    assert made.tags["fedloop.key"] == "sha:1"
    assert abs(made.created_at - time.time()) < 60

    import mlflow

    with connection(settings) as client:
        found = client.get_model_version(settings.model_name, "1")
        logged = client.get_logged_model(found.source.removeprefix("models:/"))
        assert {metric.key for metric in logged.metrics} == {"gate.accuracy", "gate.nothing"}
        place = client.get_model_version_download_uri(settings.model_name, "1")
    assert place.startswith(settings.artifacts.as_uri())
    place = place.removeprefix("file://")
    model = mlflow.models.Model.load(place)
    assert model.signature.inputs.inputs[0].shape == (-1, 8, 8, 1)
    assert model.signature.outputs.inputs[0].shape == (-1, 10)
    example = np.asarray(model.load_input_example(place), dtype=np.float32)
    assert np.allclose(example, 0.2)
    files = [path.name for path in settings.artifacts.rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith((".pkl", ".pt", ".pth", ".pickle", ".bin"))]

    answer = mlflow.pyfunc.load_model(place).predict(example)
    pixels = to_tensor(np.full((2, 8, 8, 1), 51, dtype=np.uint8))
    module = artifact.load(registry.fetch(settings, 1), settings.task)
    assert np.allclose(answer, module(pixels).softmax(dim=1).detach().numpy(), atol=1e-6)

    folder = registry.fetch(settings, 1)
    assert {path.name for path in folder.iterdir()} >= {"weights.safetensors", "summary.npz", "plot.png"}
    assert np.load(folder / "summary.npz")["centroids"].shape == (3, 3)
    assert all(torch.equal(value, weights[name]) for name, value in artifact.read(folder)[0].items())


def test_the_same_key_is_registered_once_and_becomes_challenger_again(settings: Settings, register: Register) -> None:
    first, second = register(1), register(2)
    again = register(1)
    assert (first.number, second.number, again.number) == (1, 2, 1)
    assert again.reused
    assert again.tags == first.tags
    assert [each.number for each in registry.versions(settings)] == [1, 2]
    challenger = registry.by_alias(settings, CHALLENGER)
    assert challenger is not None
    assert challenger.number == 1


def test_the_champion_registered_again_does_not_challenge_itself(settings: Settings, register: Register) -> None:
    made = register(1)
    registry.set_alias(settings, CHAMPION, made.number)
    registry.drop_alias(settings, CHALLENGER)
    assert register(1).reused
    assert registry.by_alias(settings, CHALLENGER) is None


def test_live_and_rehearsal_do_not_see_each_other(settings: Settings, register: Register) -> None:
    rehearsal = settings.model_copy(update={"stage": "rehearsal"})
    register(1)
    assert registry.versions(rehearsal) == []
    assert register(1, into=rehearsal).number == 1
    assert registry.fetch(rehearsal, 1) != registry.fetch(settings, 1)


def test_what_does_not_exist_is_none_empty_or_said(settings: Settings, register: Register) -> None:
    assert registry.by_alias(settings, CHAMPION) is None
    assert registry.versions(settings) == []
    registry.drop_alias(settings, CHAMPION)
    with pytest.raises(Missing, match="no version 1 of 'digits'"):
        registry.fetch(settings, 1)
    register(1)
    assert registry.by_alias(settings, CHAMPION) is None
    registry.drop_alias(settings, CHAMPION)
    for ask in (registry.fetch, registry.version, lambda s, n: registry.set_alias(s, CHAMPION, n)):
        with pytest.raises(Missing, match="no version 7 of 'digits'"):
            ask(settings, 7)


def test_weights_that_do_not_fit_the_task_are_not_registered(settings: Settings) -> None:
    wrong = parameters(settings) | {"0.weight": torch.zeros(16, 3, 3, 3)}
    what: dict[str, Any] = {"parameters": wrong, "tags": {}, "figures": {}, "summary": None, "run_id": "none"}
    what["example"] = np.zeros((1, 8, 8, 1), dtype=np.uint8)
    with pytest.raises(BadInput, match=r"0.weight is \[16, 3, 3, 3\]"):
        registry.register(settings, key="k", **what)
    with pytest.raises(BadInput, match="the key"):
        registry.register(settings, key="' or 1", **what)
    assert registry.versions(settings) == []


def test_a_registry_that_was_thrown_away_is_not_served_from_the_cache(
    settings: Settings, register: Register, empty_registry: Path
) -> None:
    register(1)
    old = artifact.read(registry.fetch(settings, 1))[0]
    assert registry.fetch(settings, 1) == registry.fetch(settings, 1)
    other = settings.model_copy(update={"tracking_uri": f"sqlite:///{settings.home / 'other' / 'mlflow.db'}"})
    (settings.home / "other").mkdir()
    shutil.copyfile(empty_registry, settings.home / "other" / "mlflow.db")
    register(2, into=other)
    new = artifact.read(registry.fetch(other, 1))[0]
    assert not torch.equal(old["0.weight"], new["0.weight"])


def test_a_server_that_is_down_or_no_registry_is_said_within_seconds(settings: Settings) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    down = settings.model_copy(update={"tracking_uri": f"http://user:secret@127.0.0.1:{port}"})
    began = time.monotonic()
    with pytest.raises(Missing, match=r"does not answer .* `make up`.* tracking_uri") as caught:
        registry.by_alias(down, CHAMPION)
    assert time.monotonic() - began < 5
    assert "secret" not in str(caught.value)


def test_a_damaged_database_is_a_sentence(settings: Settings) -> None:
    (settings.home / "mlflow" / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(Missing, match=r"the model registry at sqlite:.* fails: .+"):
        registry.by_alias(settings, CHAMPION)


def test_two_processes_may_create_the_registry_together(tmp_path: Path) -> None:
    code = (
        "import sys; from pipelines import registry; from pipelines.settings import load_settings;"
        "print(registry.by_alias(load_settings(home=sys.argv[1]), 'champion'))"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "new")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path.cwd(),
        text=True,
    )
    while other.poll() is None and not (tmp_path / "new").exists():
        time.sleep(0.005)
    assert registry.by_alias(load_settings(home=tmp_path / "new"), CHAMPION) is None
    out, err = other.communicate(timeout=120)
    assert (other.returncode, out.strip()) == (0, "None"), err
    assert "INFO" not in err  # a hundred migrations are no news


def test_no_default_address_is_left_behind(settings: Settings, register: Register) -> None:
    before = os.environ.get("MLFLOW_TRACKING_URI")
    register(1)
    assert os.environ.get("MLFLOW_TRACKING_URI") == before


def test_a_run_goes_on_under_its_key_and_a_round_logged_twice_counts_once(settings: Settings, tmp_path: Path) -> None:
    run = Run.start(settings, "training", "abc")
    run.tags({"cause": "test"})
    for step in range(3):
        run.metrics({"loss": 1.0 / (step + 1), "accuracy": step / 10}, step)
    again = Run.start(settings, "training", "abc")
    assert again.run_id == run.run_id
    for step in range(1, 5):
        again.metrics({"loss": 1.0 / (step + 1)}, step)
        again.metrics({"loss": 1.0 / (step + 1)}, step)
    picture = tmp_path / "curve.png"
    picture.write_bytes(b"png")
    again.artifact(picture)
    again.end()
    assert Run.start(settings, "training", "other").run_id != run.run_id
    with connection(settings) as client:
        history = client.get_metric_history(run.run_id, "loss")
        assert [metric.step for metric in history] == [0, 1, 2, 3, 4]
        assert client.get_run(run.run_id).info.status == "FINISHED"
        assert client.get_run(run.run_id).data.tags["cause"] == "test"
        assert [file.path for file in client.list_artifacts(run.run_id)] == ["curve.png"]
