"""The coupon task: real people, one a client, and judged on people whom no model has met."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from models import coupon
from models.errors import BadInput, Missing

here = pytest.mark.skipif(not os.environ.get("FEDLOOP_DATA"), reason="needs coupon_triggering in FEDLOOP_DATA")


@here
def test_a_client_is_a_person_and_every_fifth_is_a_stranger() -> None:
    people, strangers = coupon.people(), coupon.strangers()
    assert (people.size, strangers.size) == (coupon.TRAINED, coupon.TESTED)
    assert (len(people.y), len(strangers.y)) == (12684 - 2585, 2585)
    assert people.x.shape[1] == coupon.FEATURES
    assert (people.x.sum(dim=1) == 25).all()


@here
def test_held_out_answers_are_the_persons_own_and_no_training_has_them() -> None:
    whole, parted = coupon.people(), coupon.people(held_out_every=4)
    ids = np.arange(coupon.TRAINED)
    assert (whole.held_out(ids).counts == 0).all()
    assert (parted.counts(ids) + parted.held_out(ids).counts == whole.counts(ids)).all()
    assert parted.held_out(ids).counts.min() >= 1
    for person in (0, 17, coupon.TRAINED - 1):
        together = torch.cat([parted.rows(ids).client(person)[0], parted.held_out(ids).client(person)[0]])
        assert torch.equal(together.sum(dim=0), whole.rows(ids).client(person)[0].sum(dim=0))


@here
def test_a_smaller_population_is_drawn_by_the_seed() -> None:
    small = [coupon.people(50, seed).counts(np.arange(50)).tolist() for seed in (1, 1, 2)]
    assert small[0] == small[1] != small[2]
    with pytest.raises(BadInput, match="1 to 469 people"):
        coupon.people(470)


@here
def test_all_rows_in_one_place_give_the_baseline() -> None:
    """accuracy .662 and AUC .703 by a logistic regression, trained where the rows may be together."""
    from sklearn.linear_model import LogisticRegression

    people = coupon.people()
    central = LogisticRegression(max_iter=2000).fit(people.x.numpy(), people.y.numpy())

    def scores(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(central.decision_function(x.numpy()))[:, None]

    quality = coupon.evaluate(scores, people)
    assert quality["accuracy"] == pytest.approx(0.662, abs=0.003)
    assert quality["auc"] == pytest.approx(0.703, abs=0.003)


def test_without_the_file_it_says_that_nobody_publishes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDLOOP_DATA", raising=False)
    coupon.load.cache_clear()
    with pytest.raises(Missing, match="FEDLOOP_DATA=<folder>"):
        coupon.people()
