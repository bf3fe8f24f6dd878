"""The retina task keeps the promises of a task; with its data here, its pools and what can be learned from them."""

from __future__ import annotations

from task_contract import auc_after_central_training, check_augmentation, check_model, check_pools, data_of

from models.retina import POOLS, TASK
from models.task import find_task


def test_the_task_is_found_by_its_name() -> None:
    assert find_task("retina") is TASK
    assert TASK.metric == "auc"


def test_its_model_keeps_no_state_across_examples() -> None:
    check_model(TASK)


def test_its_augmentation_follows_the_generator() -> None:
    check_augmentation(TASK)


def test_its_pools_share_no_image() -> None:
    data = data_of(TASK)
    check_pools(TASK, data)
    assert {name: len(getattr(data, name)) for name in POOLS} == POOLS


def test_the_probe_is_the_test_set_and_grade_two_is_referable() -> None:
    probe = data_of(TASK).probe
    # MedMNIST's test set: 174, 46, 92, 68 and 20 images of grades 0 to 4.
    assert (len(probe), sum(label or 0 for label in probe.labels)) == (400, 92 + 68 + 20)


def test_the_pools_are_the_same_every_time() -> None:
    first, second = data_of(TASK), TASK.load()
    assert first.development.labels == second.development.labels
    assert all((a == b).all() for a, b in zip(first.live.images, second.live.images, strict=True))  # type: ignore[union-attr]


def test_a_few_epochs_learn_something() -> None:
    assert auc_after_central_training(TASK, data_of(TASK), epochs=6, learning_rate=0.01) > 0.7
