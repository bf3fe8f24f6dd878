"""FedNova: what a site's steps add up to, and what the mean owes to sites of unequal work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import plain_loop
import pytest
from drawn_settings import SEED, Case, case_of, cases
from few_sites import run, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.federated.fednova import normaliser
from pipelines.federated.strategies import fedavg, fednova
from pipelines.federated.work import LocalWork


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.sampled_from([0.0, 0.5, 0.9]), st.floats(0.0, 2.0))
def test_the_normaliser_is_how_far_unit_gradients_move_a_weight(steps: list[int], momentum: float, mu: float) -> None:
    """With gradients of 1 throughout, torch's own recursion moves the weight by −rate · Σ a."""
    work = LocalWork(learning_rate=0.05, momentum=momentum, proximal=mu)
    for count, found in zip(steps, normaliser(np.array(steps), work), strict=True):
        at, velocity = 0.0, 0.0
        for _ in range(count):
            velocity = momentum * velocity + 1.0 + mu * at
            at -= 0.05 * velocity
        assert found == pytest.approx(-at / 0.05, rel=1e-9, abs=1e-9)


def test_for_plain_sgd_the_normaliser_is_the_number_of_steps() -> None:
    assert normaliser(np.array([0, 1, 7, 300]), LocalWork()).tolist() == [0, 1, 7, 300]


@settings(max_examples=8, deadline=None)
@given(cases(momentum=(0.0,)), st.sampled_from([0.1, 1.0]))
def test_with_a_proximal_term_it_is_the_papers_loop(case: Case, mu: float) -> None:
    state = run(fednova(replace(case.work, proximal=mu)), case.sites, SEED)
    assert np.abs(weights_of(state) - plain_loop.fednova(case.plain(), case.start, mu)).max() < 2e-6


def test_with_equal_sites_it_is_fedavg() -> None:
    case = case_of([8, 8, 8, 8], [[0, 1, 2], [1, 2, 3], [0, 3]])
    states = [run(strategy(case.work), case.sites, SEED) for strategy in (fednova, fedavg)]
    assert np.abs(weights_of(states[0]) - weights_of(states[1])).max() < 1e-6


def test_a_site_of_many_steps_pulls_less_than_under_fedavg() -> None:
    """One site of 40 rows against ten of 4: under FedAvg its steps count as often again as its rows do."""
    case = case_of([40, *[4] * 10], [list(range(11))])
    large = case_of([40], [[0]], seed=0)
    lone = weights_of(run(fedavg(large.work), large.sites, SEED)) - large.start
    pulls = []
    for strategy in (fednova, fedavg):
        moved = weights_of(run(strategy(case.work), case.sites, SEED)) - case.start
        pulls.append(moved @ lone / np.linalg.norm(moved))
    assert pulls[0] < pulls[1]
