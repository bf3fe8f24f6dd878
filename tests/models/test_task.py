"""Tasks are found by name; every built-in one that is at hand keeps the contract of a task."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import BadInput
from models.images import read_image, to_tensor
from models.task import BUILT_IN, Rows, Task, find_task


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mnist", "there is no task 'mnist'; built in are digits"),
        ("", "there is no task ''"),
        ("digits:", "there is no task"),
        ("no_such_package.module:TASK", "cannot be imported; is its folder on PYTHONPATH"),
        ("models.digits:NOTHING", "has no 'NOTHING'"),
        ("models.digits:POOLS", "POOLS is a dict, not a models.task.Task"),
        (":TASK", "no module's name; write package.module:TASK"),
        (".digits:TASK", "no module's name; write package.module:TASK"),
    ],
)
def test_a_task_that_is_not_there_is_a_sentence(name: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        find_task(name)


def test_ones_own_task_loads_from_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clinic_task.py").write_text(
        "from dataclasses import replace\nfrom models.digits import TASK\nMINE = replace(TASK, name='clinic')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_task("clinic_task:MINE").name == "clinic"


def test_names_and_metrics_that_would_not_work_are_refused() -> None:
    digits = find_task("digits")
    for name in ("../evil", "a b", "", "a/b"):
        with pytest.raises(BadInput, match="letters, digits"):
            Task(name, digits.input, digits.classes, digits.load, digits.build_model)
    with pytest.raises(BadInput, match="two classes"):
        Task("ten", digits.input, digits.classes, digits.load, digits.build_model, metric="auc")


def test_rows_need_as_many_labels_as_images() -> None:
    with pytest.raises(BadInput, match="3 images and 2 labels"):
        Rows([np.zeros((8, 8), dtype=np.uint8)] * 3, [1, 2])


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_task_keeps_its_contract(name: str) -> None:
    if name != "digits" and "FEDLOOP_DATA" not in os.environ:
        pytest.skip("FEDLOOP_DATA names no folder with this task's data")
    task = find_task(name)
    assert task.name == name
    data = task.load()
    pools = {pool: getattr(data, pool) for pool in ("development", "evaluation", "live", "probe")}
    images = {pool: {read_image(i, task.input).tobytes() for i in rows.images} for pool, rows in pools.items()}
    assert all(images.values())
    for first in pools:
        for second in pools:
            assert first == second or not images[first] & images[second], f"{first} and {second} share an image"
        assert set(pools[first].labels) <= set(range(len(task.classes)))
    again = task.load()
    assert all(np.array_equal(a, b) for a, b in zip(data.live.images, again.live.images, strict=True))

    some = np.stack([read_image(i, task.input) for i in data.development.images[:8]])
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(task.build_model())
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    with torch.no_grad():
        together = models[0].eval()(to_tensor(some))
        alone = models[0](to_tensor(some[:1]))
    assert tuple(together.shape) == (8, len(task.classes))
    assert torch.allclose(together[:1], alone, atol=1e-5), "an image's outputs depend on its neighbours"
    features = task.embed(some)
    assert features.shape[0] == 8
    assert np.linalg.norm(features, axis=1).max() <= 1.001
