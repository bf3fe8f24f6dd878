"""The keyboard fleet: devices out of nothing, the same whoever asks; users who differ, clicks that can be learned."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BadInput
from models.keyboard import EVALUATED, FEWEST, MOST, TASK, Keyboard
from models.population import Ragged
from models.scores import binary_quality, outputs_of
from models.suggestions import BLOCK, FEATURES, USERS_PAST, Truth

FLEET = Keyboard(10**9, seed=4)
devices = st.lists(st.integers(0, 10**9 - 1), min_size=1, max_size=12, unique=True)


def same(one: Ragged, a: int, other: Ragged, b: int) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one.client(a), other.client(b), strict=True))


@settings(deadline=None, max_examples=30)
@given(devices, st.randoms(use_true_random=False))
def test_a_device_holds_the_same_rows_whoever_is_asked_with_it(ids: list[int], random: object) -> None:
    shuffled = list(ids)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    together, reordered = FLEET.rows(np.array(ids)), FLEET.rows(np.array(shuffled))
    for position, device in enumerate(ids):
        alone = FLEET.rows(np.array([device]))
        assert same(together, position, alone, 0)
        assert same(together, position, reordered, shuffled.index(device))


def test_a_device_holds_the_same_rows_in_whichever_block_it_falls() -> None:
    many = FLEET.rows(np.arange(3 * BLOCK + 7))
    shifted = FLEET.rows(np.arange(BLOCK // 2, 3 * BLOCK))
    assert torch.equal(shifted.x, many.x[many.starts[BLOCK // 2] : many.starts[3 * BLOCK]])
    assert torch.equal(shifted.y, many.y[many.starts[BLOCK // 2] : many.starts[3 * BLOCK]])


def test_counts_are_those_of_the_rows_and_lie_in_their_bounds() -> None:
    ids = np.arange(5000)
    counts = FLEET.counts(ids)
    assert (counts == FLEET.rows(ids).counts).all()
    assert (counts.min(), counts.max()) == (FEWEST, MOST)
    assert 19 < counts.mean() < 21


def test_the_number_of_examples_can_be_fixed() -> None:
    rows = Keyboard(1000, examples=20).rows(np.arange(50))
    assert (rows.counts == 20).all()
    assert rows.x.shape == (1000, FEATURES)
    assert rows.x.dtype == torch.float32


def test_a_device_costs_some_microseconds_of_a_core() -> None:
    """5 where nothing else runs; the allowance is for machines that are busy."""
    fleet, ids = Keyboard(10**9, examples=20), np.random.default_rng(0).integers(0, 10**9, 2500)
    fleet.rows(ids)
    spent = []
    for _ in range(5):
        began = time.process_time()
        fleet.rows(ids)
        spent.append(time.process_time() - began)
    assert min(spent) / len(ids) < 25e-6


def test_held_out_rows_other_days_and_other_seeds_are_other_rows() -> None:
    ids = np.arange(200)
    blocks = [
        FLEET.rows(ids).x,
        FLEET.held_out(ids).x,
        FLEET.on(day=1).rows(ids).x,
        Keyboard(10**9, seed=5).rows(ids).x,
    ]
    rows = torch.cat(blocks)
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_the_users_stay_the_same_from_day_to_day() -> None:
    ids = np.arange(100)
    today, tomorrow = FLEET.rows(ids), FLEET.on(day=1).rows(ids)
    assert (today.counts == tomorrow.counts).all()
    column = USERS_PAST[0]
    assert torch.equal(today.x[today.starts, column], tomorrow.x[tomorrow.starts, column])


def test_features_and_weights_lie_on_the_grid_that_makes_their_sums_exact() -> None:
    x, weights = FLEET.rows(np.arange(300)).x, Truth.on(day=9, drift=0.4).weights
    for values in (x, weights):
        assert torch.equal(values * 64, (values * 64).round())
    assert float((x.double().abs() @ weights.double().abs()).max()) < 2**24 / 64**2


def test_between_one_and_three_in_ten_suggestions_are_clicked_and_users_differ() -> None:
    rows = Keyboard(1000, examples=60).rows(np.arange(1000))
    rates = rows.y.double().reshape(1000, 60).mean(dim=1)
    assert 0.10 < float(rates.mean()) < 0.25
    chance = float(rates.mean() * (1 - rates.mean())) / 60
    assert float(rates.var()) > 3 * chance


def test_a_linear_model_learns_much_but_not_all_that_can_be_known() -> None:
    torch.manual_seed(0)
    fleet = Keyboard(10_000)
    rows = fleet.rows(np.arange(4000))
    model = TASK.build_model()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(model(rows.x)[:, 0], rows.y.float())
        value.backward()
        return value

    optimizer.step(loss)
    learned = TASK.evaluate(model, fleet)
    judged = np.unique(np.linspace(0, fleet.size - 1, EVALUATED).astype(np.int64))
    known = binary_quality(torch.from_numpy(fleet.odds(judged)), fleet.held_out(judged).y)
    assert learned["auc"] > 0.75
    assert known["auc"] > learned["auc"] + 0.03
    assert known["log_loss"] < learned["log_loss"]


def test_drift_changes_what_makes_users_click_and_its_absence_does_not() -> None:
    still, moving = Truth.on(14, 0.0), Truth.on(14, 0.5)
    assert torch.equal(still.weights, Truth.on(0, 0.0).weights)
    assert not torch.equal(moving.weights, Truth.on(0, 0.5).weights)
    assert torch.equal(moving.weights, Truth.on(42, 0.5).weights)


def test_a_fleet_of_nobody_is_refused() -> None:
    with pytest.raises(BadInput, match="at least 1"):
        Keyboard(0)
    with pytest.raises(BadInput, match="examples=0"):
        Keyboard(10, examples=0)


def test_outputs_are_scored_in_parts_as_in_one() -> None:
    images = torch.randint(0, 256, (1203, 1, 4, 4), dtype=torch.uint8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    torch.testing.assert_close(outputs_of(model, images), model(images.float() / 255.0).detach())
