"""The pneumonia task keeps the promises of a task; with its data here, its pools and what can be learned from them."""

from __future__ import annotations

from task_contract import auc_after_central_training, check_augmentation, check_model, check_pools, data_of

from models.pneumonia import POOLS, TASK
from models.task import find_task


def test_the_task_is_found_by_its_name() -> None:
    assert find_task("pneumonia") is TASK
    assert TASK.metric == "auc"


def test_its_model_keeps_no_state_across_examples() -> None:
    check_model(TASK)


def test_its_augmentation_follows_the_generator() -> None:
    check_augmentation(TASK)


def test_its_pools_share_no_image_though_the_file_has_duplicates() -> None:
    data = data_of(TASK)
    check_pools(TASK, data)
    assert {name: len(getattr(data, name)) for name in POOLS} == POOLS


def test_the_probe_is_the_test_set() -> None:
    probe = data_of(TASK).probe
    # MedMNIST's test set: 234 normal, 390 pneumonia; a few images are there twice.
    assert 600 < len(probe) <= 624
    assert 380 < sum(label or 0 for label in probe.labels) <= 390


def test_a_few_epochs_learn_something() -> None:
    assert auc_after_central_training(TASK, data_of(TASK), epochs=2, learning_rate=0.02) > 0.85
