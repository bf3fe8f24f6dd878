"""Every fleet task keeps the same promises, whether it is generated, real, or an image task dealt to devices."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import digits
from models.errors import BadInput
from models.fleet_task import find_fleet_task, of_images
from models.image_fleet import ImageFleet, Pool
from models.scores import outputs_of
from models.task import Rows

BUNDLED = ("keyboard", "digits")
TASKS = ("keyboard", "coupon", "heart", "models.mnist:TWO_NN_IID", "digits", "retina", "pneumonia")


@pytest.fixture(params=TASKS)
def name(request: pytest.FixtureRequest) -> str:
    if request.param not in BUNDLED and not os.environ.get("FEDLOOP_DATA"):
        pytest.skip(f"the data of {request.param} are not here; name the folder that holds them in FEDLOOP_DATA")
    return str(request.param)


def test_a_fleet_task_keeps_its_promises(name: str) -> None:
    task = find_fleet_task(name)
    population = task.population(task.default_size, 3)
    ids = np.arange(0, min(population.size, 300), 3)
    rows, held_out = population.rows(ids), population.held_out(ids)
    assert (population.counts(ids) == rows.counts).all()
    assert rows.counts.min() >= 1
    for block in (rows, held_out):
        assert len(block) == len(ids)
        assert block.x.dtype in (torch.float32, torch.uint8)
        assert block.y.dtype == torch.int64
    torch.manual_seed(0)
    model = task.build_model()
    assert list(model.buffers()) == []
    x, y = rows.client(1)
    assert outputs_of(model, x).shape[0] == len(y)
    quality = task.evaluate(model, population)
    assert np.isfinite(quality[task.metric])
    assert {"epochs", "batch_size", "learning_rate", "goal"} <= set(task.recipe)


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(BadInput, match="keyboard, coupon, heart, mnist, digits"):
        find_fleet_task("keybord")
    with pytest.raises(BadInput, match="cannot be imported"):
        find_fleet_task("no_such_module:TASK")


def test_a_task_of_ones_own_is_named_by_module_and_attribute() -> None:
    assert find_fleet_task("models.keyboard:TASK") is find_fleet_task("keyboard")
    assert find_fleet_task("models.digits:TASK").name == "digits"


FLEET = of_images(digits.TASK).population(10**6, 2)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 10**6 - 1), min_size=1, max_size=8, unique=True))
def test_an_image_device_holds_the_same_rows_whoever_is_asked_with_it(ids: list[int]) -> None:
    for which in (FLEET.rows, FLEET.held_out):
        together = which(np.array(ids))
        for position, device in enumerate(ids):
            alone = which(np.array([device]))
            assert all(torch.equal(a, b) for a, b in zip(together.client(position), alone.client(0), strict=True))


def test_image_devices_differ_in_their_classes_and_hold_them_out_in_the_same_mix() -> None:
    assert isinstance(FLEET, ImageFleet)
    ids = np.arange(300)
    mixes = [
        np.stack([np.bincount(block.client(i)[1], minlength=10) / block.counts[i] for i in range(300)])
        for block in (FLEET.rows(ids), FLEET.held_out(ids))
    ]
    assert np.median(mixes[0].max(axis=1)) > 0.3
    own = (mixes[0] * mixes[1]).sum(axis=1).mean()
    others = (mixes[0] * np.roll(mixes[1], 1, axis=0)).sum(axis=1).mean()
    assert own > 1.5 * others
    assert abs(mixes[0].mean(axis=0) - 0.1).max() < 0.03


def test_the_skew_of_classes_goes_from_one_class_to_the_pools_mix() -> None:
    assert isinstance(FLEET, ImageFleet)
    largest = []
    for skew in (0.01, 0.5, 500.0):
        fleet = ImageFleet(1000, 1, FLEET.training, FLEET.evaluation, skew)
        block = fleet.rows(np.arange(200))
        largest.append(np.mean([np.bincount(block.client(i)[1]).max() / block.counts[i] for i in range(200)]))
    assert largest[0] > 0.9
    assert largest[0] > largest[1] > largest[2]


def test_images_come_as_bytes_arrays_or_floats_and_only_labelled_ones_count() -> None:
    from models.images import encode_png

    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    rows = Rows([encode_png(image), image, image[:, :, 0] / 255.0, image], [1, 0, 1, None])
    pool = Pool.of(rows, digits.TASK)
    assert pool.x.shape == (3, 1, 8, 8)
    assert (pool.x == torch.from_numpy(image[:, :, 0])).all()
    assert pool.y.tolist() == [0, 1, 1]
    with pytest.raises(BadInput, match="no image of the pool has a label"):
        Pool.of(Rows([image], [None]), digits.TASK)
