from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from models import artifact, digits
from models.errors import BadInput, Missing


def build_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


TASK = dataclasses.replace(digits.TASK, build_model=build_model)


def test_what_is_loaded_is_what_was_saved_bit_by_bit(tmp_path: Path) -> None:
    torch.manual_seed(3)
    weights = {name: torch.randn_like(value) for name, value in TASK.build_model().state_dict().items()}
    artifact.save(tmp_path, TASK.name, weights, {"key": "abc"})
    model = artifact.load(tmp_path, TASK)
    assert not model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert artifact.read(tmp_path)[1] == {"task": "digits", "key": "abc"}
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_weights_that_share_memory_are_saved_each(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    artifact.save(tmp_path, "t", {"a": shared, "b": shared, "c": shared.reshape(2, 3).T}, {})
    tensors, _ = artifact.read(tmp_path)
    assert torch.equal(tensors["a"], tensors["b"])
    assert torch.equal(tensors["c"], shared.reshape(2, 3).T)


def test_another_architecture_is_refused_with_the_names_and_shapes_that_differ(tmp_path: Path) -> None:
    state = TASK.build_model().state_dict()
    state["3.weight"] = torch.zeros(7, 144)
    state["9.extra"] = torch.zeros(1)
    del state["0.bias"]
    artifact.save(tmp_path, TASK.name, state, {})
    with pytest.raises(BadInput) as caught:
        artifact.load(tmp_path, TASK)
    for fragment in (
        "0.bias is missing",
        "9.extra is unknown",
        "3.weight is [7, 144] float32, expected [10, 144] float32",
    ):
        assert fragment in str(caught.value)


def test_another_task_of_the_same_architecture_is_refused(tmp_path: Path) -> None:
    artifact.save(tmp_path, TASK.name, TASK.build_model().state_dict(), {})
    with pytest.raises(BadInput, match="a model of task 'digits', not of 'other'"):
        artifact.load(tmp_path, dataclasses.replace(TASK, name="other"))


def test_no_file_and_a_damaged_file_say_so(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no weights at"):
        artifact.load(tmp_path, TASK)
    path = artifact.save(tmp_path, TASK.name, TASK.build_model().state_dict(), {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match="not a readable safetensors file"):
        artifact.load(tmp_path, TASK)


def test_a_pickle_under_the_name_of_the_weights_is_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "executed",))  # type: ignore[return-value]

    (tmp_path / artifact.WEIGHTS).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BadInput):
        artifact.load(tmp_path, TASK)
    assert not (tmp_path / "executed").exists()


def test_a_module_without_weights_is_still_a_file(tmp_path: Path) -> None:
    artifact.save(tmp_path, "t", nn.ReLU().state_dict(), {})
    assert artifact.read(tmp_path) == ({}, {"task": "t"})
