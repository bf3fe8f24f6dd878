"""Devices are functions of their numbers: the same whoever asks, however many there are, and as distributed as said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BadInput
from pipelines.federated.cohort import DAY_S, KEYBOARD_COHORT, Eligibility
from pipelines.federated.fleet import LARGEST, Fleet, Region
from pipelines.federated.rest import HOUR_S

NEEDS = KEYBOARD_COHORT.eligibility
numbers = st.lists(st.integers(0, 999_999), min_size=1, max_size=40).map(lambda ids: np.array(ids, dtype=np.int64))
moments = st.floats(0, 400 * DAY_S)


@given(ids=numbers, at_s=moments, seed=st.integers(0, 2**40))
def test_a_device_is_the_same_alone_and_among_others_and_in_a_fleet_of_any_size(
    ids: np.ndarray, at_s: float, seed: int
) -> None:
    small, large = Fleet(10**6, seed), Fleet(10**9, seed)
    together = small.available(ids, at_s, NEEDS)
    for position in range(len(ids)):
        alone = large.available(ids[position : position + 1], at_s, NEEDS)
        assert bool(alone.ready[0]) == bool(together.ready[position])
        assert alone.until_s[0] == together.until_s[position]
    for name, values in vars(small.traits(ids)).items():
        assert np.array_equal(values, getattr(large.traits(ids), name))


@settings(deadline=None)
@given(start=st.integers(0, 900_000), at_s=moments)
def test_ready_is_the_conjunction_and_lasts_until_it_says(start: int, at_s: float) -> None:
    fleet, ids = Fleet(10**6), np.arange(start, start + 500)
    now = fleet.available(ids, at_s)
    assert np.array_equal(now.ready, now.charging & now.unmetered & now.idle)
    assert (now.until_s[now.ready] > at_s).all()
    assert (now.until_s[now.ready] < at_s + DAY_S).all()
    ids, until = ids[now.ready], now.until_s[now.ready]
    halfway = fleet.available(ids, (at_s + until) / 2)
    assert halfway.ready.all()
    assert np.allclose(halfway.until_s, until, atol=0.1)
    inside = np.abs(until / HOUR_S - np.rint(until / HOUR_S)) > 1e-3  # else a night may begin as a day ends
    assert not fleet.available(ids[inside], until[inside] + 1.0).charging.any()


def test_what_is_not_asked_for_does_not_end_a_session() -> None:
    fleet, ids = Fleet(10**6), np.arange(1000)
    anything = fleet.available(ids, 0.0, Eligibility(charging=False, unmetered=False, idle=False))
    assert anything.ready.all()
    assert np.isinf(anything.until_s).all()
    network = fleet.available(ids, 0.0, Eligibility(charging=False, idle=False))
    assert np.array_equal(network.ready, network.unmetered)


def test_devices_are_of_the_kinds_that_the_fleet_says() -> None:
    fleet = Fleet(10**9, seed=5)
    ids = np.random.default_rng(0).integers(0, fleet.size, 100_000)
    counts = fleet.groups(ids)
    for trait, shares in fleet.shares().items():
        assert sum(shares.values()) == pytest.approx(1)
        assert counts[trait].sum() == len(ids)
        assert counts[trait] / len(ids) == pytest.approx(np.array(list(shares.values())), abs=0.01), trait
    traits = fleet.traits(ids)
    assert np.median(traits.speed) == pytest.approx(fleet.speed_median, rel=0.02)
    assert np.median(traits.down_rate) == pytest.approx(fleet.down_median, rel=0.02)
    small = traits.memory == 0
    assert np.median(traits.speed[small]) < 0.7 * fleet.speed_median


def test_phones_rest_at_night_and_not_on_the_same_day_alike() -> None:
    fleet, ids = Fleet(10**6), np.arange(20_000)
    ids = ids[fleet.admits(fleet.words(ids), NEEDS)]
    hourly = np.array([fleet.available(ids, 3 * DAY_S + hour * HOUR_S, NEEDS).ready.mean() for hour in range(24)])
    assert 5 <= int(hourly.argmax()) <= 11  # UTC: the small hours of North America
    assert 3 < hourly.max() / hourly.min() < 12
    night = fleet.available(ids, 3 * DAY_S + 8 * HOUR_S, NEEDS).ready
    next_night = fleet.available(ids, 4 * DAY_S + 8 * HOUR_S, NEEDS).ready
    assert 0.1 < (night != next_night).mean() < 0.6


def test_locale_and_memory_are_what_was_asked_for() -> None:
    fleet, ids = Fleet(10**6), np.arange(5000)
    admitted = fleet.admits(fleet.words(ids), NEEDS)
    traits = fleet.traits(ids)
    locales = np.array([fleet.regions[region].locale for region in traits.region])
    memory = np.array([gb for gb, _ in fleet.memory])[traits.memory]
    assert np.array_equal(admitted, np.isin(locales, ["en-US", "en-CA"]) & (memory >= 2))
    with pytest.raises(BadInput, match="tlh-KL"):
        fleet.admits(fleet.words(ids), Eligibility(locales=("tlh-KL",)))


def test_a_fleet_that_cannot_be_is_refused_in_a_sentence() -> None:
    for wrong in (
        lambda: Fleet(0),
        lambda: Fleet(LARGEST + 1),
        lambda: Fleet(10, latency_s=0.0),
        lambda: Fleet(10, regions=(Region("en-US", 0, 0.5),)),
    ):
        with pytest.raises(BadInput):
            wrong()
