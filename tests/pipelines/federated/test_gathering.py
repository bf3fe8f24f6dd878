"""A round of a fleet: a pure function of (seed, round, clock), in which nobody is lost and the rules hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BadInput
from pipelines.federated.clock import Clock
from pipelines.federated.cohort import DAY_S, KEYBOARD_COHORT, Abandoned, Cohort, Committed, Eligibility
from pipelines.federated.fleet import Fleet
from pipelines.federated.gathering import Gathering, gather
from pipelines.federated.sessions import SessionCost

COST = SessionCost(down_bytes=5.6e6, up_bytes=5.6e6)
SMALL = replace(KEYBOARD_COHORT, goal=10)
rounds_of = st.integers(1, 10**6)
hours = st.integers(0, 47)
goals = st.integers(1, 60)


def counts(ids: np.ndarray) -> np.ndarray:
    return 5 + ids * 2654435761 % 200


def run(fleet: Fleet, cohort: Cohort, rounds: int, clock: Clock | None = None, first: int = 1) -> Iterator:
    clock = clock or Clock()
    for number in range(first, first + rounds):
        gathering, clock = gather(fleet, cohort, counts, COST, 7, number, clock)
        yield gathering, clock


def same(one: Gathering, other: Gathering) -> None:
    for part in fields(Gathering):
        mine, theirs = getattr(one, part.name), getattr(other, part.name)
        if isinstance(mine, np.ndarray):
            assert np.array_equal(mine, theirs), part.name
        elif part.name == "participation":
            assert {trait: kinds.tolist() for trait, kinds in mine.items()} == {
                trait: kinds.tolist() for trait, kinds in theirs.items()
            }
        else:
            assert mine == theirs, part.name


@settings(deadline=None, max_examples=25)
@given(number=rounds_of, hour=hours, goal=goals)
def test_the_same_seed_round_and_clock_give_the_same_round(number: int, hour: int, goal: int) -> None:
    fleet, cohort, clock = Fleet(50_000), replace(SMALL, goal=goal), Clock(now_s=hour * 3600.0)
    one, after_one = gather(fleet, cohort, counts, COST, 7, number, clock)
    other, after_other = gather(fleet, cohort, counts, COST, 7, number, clock)
    same(one, other)
    for name, array in after_one.arrays().items():
        assert np.array_equal(array, after_other.arrays()[name], equal_nan=True), name
    third, _ = gather(fleet, cohort, counts, COST, 8, number, clock)
    assert third.ended_s != one.ended_s


@settings(deadline=None, max_examples=25)
@given(number=rounds_of, hour=hours, goal=goals, size=st.sampled_from([200, 3_000, 10**6, 10**9]))
def test_nobody_is_lost_and_time_goes_on(number: int, hour: int, goal: int, size: int) -> None:
    fleet, cohort, clock = Fleet(size), replace(SMALL, goal=goal), Clock(now_s=hour * 3600.0)
    gathering, after = gather(fleet, cohort, counts, COST, 7, number, clock)
    assert gathering.polls["accepted"] == gathering.left + gathering.selected
    assert gathering.selected == sum(gathering.sessions.values())
    assert gathering.sessions["finished"] == len(gathering.ids) == len(np.unique(gathering.ids)) <= goal
    assert clock.now_s == gathering.started_s <= gathering.selected_s <= gathering.ended_s == after.now_s
    assert gathering.ended_s <= gathering.selected_s + cohort.deadline_s
    assert gathering.selected_s <= clock.now_s + cohort.patience_s
    assert (np.diff(gathering.arrived_s) >= 0).all()
    assert (gathering.versions == number - 1).all()
    assert 0 <= gathering.bytes_wasted <= gathering.bytes_down + gathering.bytes_up
    assert after.total("finished") == gathering.sessions["finished"]
    assert isinstance(gathering.outcome, Committed) == (len(gathering.ids) >= math.ceil(round(0.8 * goal, 9)))
    if isinstance(gathering.outcome, Abandoned):
        assert len(after.contributions) == 0
        assert all(kinds.sum() == 0 for kinds in gathering.participation.values())
    else:
        assert len(after.contributions) == len(gathering.ids)
        assert all(kinds.sum() == len(gathering.ids) for kinds in gathering.participation.values())


@settings(deadline=None, max_examples=15)
@given(number=rounds_of, hour=hours, most=st.integers(5, 204))
def test_whoever_reports_was_eligible_from_the_start_of_its_session_to_the_end(
    number: int, hour: int, most: int
) -> None:
    fleet, clock = Fleet(10**6), Clock(now_s=hour * 3600.0)
    needs = replace(KEYBOARD_COHORT.eligibility, minimum_examples=most)
    gathering, _ = gather(fleet, replace(SMALL, goal=30, eligibility=needs), counts, COST, 7, number, clock)
    ids = gathering.ids
    assert fleet.admits(fleet.words(ids), needs).all()
    assert (counts(ids) >= most).all()
    assert np.array_equal(gathering.examples, counts(ids))
    for moment in (np.full(len(ids), gathering.selected_s), gathering.arrived_s):
        assert fleet.available(ids, moment - 0.05, needs).ready.all()


def test_no_device_contributes_twice_within_the_minimum_separation() -> None:
    separation = 6 * 3600.0
    cohort = replace(SMALL, eligibility=replace(SMALL.eligibility, minimum_separation_s=separation))
    last: dict[int, float] = {}
    again = 0
    for gathering, clock in run(Fleet(600), cohort, 150):
        if isinstance(gathering.outcome, Committed):
            for device, at_s in zip(gathering.ids.tolist(), gathering.arrived_s.tolist(), strict=True):
                assert at_s - last.get(device, -separation) >= separation
                again += device in last
                last[device] = at_s
        assert len(clock.contributions) <= 10 * (
            1 + sum(at_s > clock.now_s - separation - 7200 for at_s in last.values())
        )
    assert again > 100


def test_a_clock_from_a_checkpoint_continues_bit_identically() -> None:
    fleet = Fleet(5_000)
    whole = list(run(fleet, SMALL, 12))
    stored = {name: array.copy() for name, array in whole[5][1].arrays().items()}
    resumed = list(run(fleet, SMALL, 6, Clock.from_arrays(stored), first=7))
    for (one, clock), (other, again) in zip(whole[6:], resumed, strict=True):
        same(one, other)
        for name, array in clock.arrays().items():
            assert array.dtype == again.arrays()[name].dtype
            assert array.tobytes() == again.arrays()[name].tobytes(), name


def test_a_torn_clock_is_refused_in_a_sentence() -> None:
    with pytest.raises(BadInput, match="start the run anew"):
        Clock.from_arrays({"times": np.zeros(2)})


def test_what_is_remembered_does_not_grow_with_the_fleet() -> None:
    bytes_of = []
    for size in (10**6, 10**9):
        *_, (_, clock) = run(Fleet(size), SMALL, 20)
        bytes_of.append(sum(array.nbytes for array in clock.arrays().values()))
        assert len(clock.contributions) <= 200
    assert max(bytes_of) < 4000


def test_a_fleet_too_small_waits_a_day_and_says_why() -> None:
    gathering, clock = gather(Fleet(60), replace(SMALL, goal=40), counts, COST, 7, 1, Clock())
    assert isinstance(gathering.outcome, Abandoned)
    assert clock.now_s == DAY_S
    assert "42 are needed" in gathering.outcome.reason
    assert "not charging" in gathering.outcome.reason
    with pytest.raises(BadInput, match="enlarge the fleet"):
        gather(Fleet(20), replace(SMALL, goal=40), counts, COST, 7, 1, Clock())
    with pytest.raises(BadInput, match="goal above 0"):
        gather(Fleet(20), Cohort(), counts, COST, 7, 1, Clock())


def test_a_small_fleet_waits_for_the_night_rather_than_abandon() -> None:
    gathering, _ = gather(Fleet(400), replace(SMALL, goal=40), counts, COST, 7, 1, Clock(now_s=17 * 3600.0))
    assert isinstance(gathering.outcome, Committed)
    assert gathering.selected_s - gathering.started_s > 3600


def test_a_deadline_that_few_can_meet_abandons_the_round_and_the_slow_are_late() -> None:
    hasty = replace(SMALL, goal=50, deadline_s=5.0)
    gathering, clock = gather(Fleet(10**6), hasty, counts, COST, 7, 1, Clock())
    assert isinstance(gathering.outcome, Abandoned)
    assert "of the 40 reports needed" in gathering.outcome.reason
    assert gathering.ended_s == pytest.approx(gathering.selected_s + 5.0)
    assert gathering.sessions["late"] > 30
    assert gathering.bytes_wasted == gathering.bytes_down + gathering.bytes_up > 0
    assert clock.total("committed") == 0


def test_pace_steering_brings_the_wanted_number_in_about_the_target() -> None:
    took = [g.selected_s - g.started_s for g, _ in run(Fleet(10**6), replace(SMALL, goal=100), 40)]
    assert 40 < np.median(took[5:]) < 90


def test_sites_need_no_eligibility() -> None:
    assert Cohort().eligibility == Eligibility()
    assert Cohort(goal=3).judge(3, 3, []) == Committed(3)
