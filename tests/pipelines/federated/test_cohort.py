"""Cohorts: a pure function of seed, round and population; a round counts when enough of it reported."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.federated.cohort import Abandoned, Cohort, Committed

populations = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=30, unique=True)


@given(
    population=populations,
    goal=st.integers(0, 12),
    seed=st.integers(0, 2**31),
    number=st.integers(1, 500),
    data=st.data(),
)
def test_a_cohort_depends_on_seed_round_and_population_alone(
    population: list[str], goal: int, seed: int, number: int, data: st.DataObject
) -> None:
    cohort = Cohort(goal, over_selection=1.3)
    chosen = cohort.select(population, seed, number)
    assert chosen == Cohort(goal, over_selection=1.3).select(data.draw(st.permutations(population)), seed, number)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(population)
    expected = len(population) if goal == 0 else min(len(population), math.ceil(round(goal * 1.3, 9)))
    assert len(chosen) == expected


@pytest.mark.parametrize(
    ("goal", "factor", "asked"), [(10, 1.1, 11), (10, 1.0, 10), (10, 1.25, 13), (7, 1.3, 10), (0, 3.0, 50)]
)
def test_over_selection_asks_that_many_more(goal: int, factor: float, asked: int) -> None:
    population = [f"site-{i:02d}" for i in range(50)]
    assert len(Cohort(goal, factor).select(population, 0, 1)) == asked


def test_rounds_and_seeds_draw_different_cohorts_and_all_sites_get_their_turn() -> None:
    population = [f"site-{i:02d}" for i in range(40)]
    cohort = Cohort(goal=10)
    drawn = [tuple(cohort.select(population, 0, number)) for number in range(1, 101)]
    assert len(set(drawn)) > 95
    assert drawn != [tuple(cohort.select(population, 1, number)) for number in range(1, 101)]
    turns = [sum(name in chosen for chosen in drawn) for name in population]
    assert min(turns) >= 10
    assert max(turns) <= 42


@settings(deadline=None)
@given(asked=st.integers(0, 40), reports=st.integers(0, 40), goal=st.integers(0, 40), minimum=st.floats(0.05, 1))
def test_a_round_is_committed_exactly_when_enough_reported(asked: int, reports: int, goal: int, minimum: float) -> None:
    wanted = asked if goal == 0 else min(goal, asked)
    outcome = Cohort(goal, minimum=minimum).judge(asked, reports, ["site-9: no power"])
    if reports >= max(1.0, minimum * wanted - 1e-6):
        assert outcome == Committed(reports)
    else:
        assert isinstance(outcome, Abandoned)
        assert "site-9: no power" in outcome.reason


def test_the_minimum_counts_the_goal_and_not_the_over_selected() -> None:
    cohort = Cohort(goal=10, over_selection=1.3, minimum=0.8)
    assert isinstance(cohort.judge(13, 8, []), Committed)
    assert isinstance(cohort.judge(13, 7, []), Abandoned)
    assert isinstance(Cohort().judge(0, 0, []), Abandoned)
