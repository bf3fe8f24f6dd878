"""Every named strategy against its paper's loop (`plain_loop.py`, float64), with partial cohorts of unequal sites."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import plain_loop
import pytest
from drawn_settings import SEED, Case, cases
from few_sites import run, weights_of
from hypothesis import given, settings
from numpy.typing import NDArray

from models.errors import BadInput
from pipelines.federated.strategies import STRATEGIES, find_strategy
from pipelines.federated.work import LocalWork

TOLERANCE = 2e-6
"""Between weights of order 1 after five rounds in float32 and the same in float64."""

LOOPS: dict[str, tuple[dict[str, float], Callable[[Case], NDArray[np.float64]]]] = {
    "fedavg": ({"server_learning_rate": 0.7}, lambda c: plain_loop.fedavg(c.plain(), c.start, 0.7)),
    "fedsgd": ({}, lambda c: plain_loop.fedsgd(c.plain(), c.start)),
    "fedprox": ({"proximal": 0.3}, lambda c: plain_loop.fedavg(c.plain(), c.start, mu=0.3)),
    "fedavgm": (
        {"server_learning_rate": 0.5, "server_momentum": 0.8},
        lambda c: plain_loop.fedavgm(c.plain(), c.start, 0.8, 0.5),
    ),
    "fedadam": (
        {"server_learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95, "adaptivity": 0.01},
        lambda c: plain_loop.adaptive(c.plain(), c.start, "adam", 0.05, 0.8, 0.95, 0.01),
    ),
    "fedyogi": (
        {"server_learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95, "adaptivity": 0.01},
        lambda c: plain_loop.adaptive(c.plain(), c.start, "yogi", 0.05, 0.8, 0.95, 0.01),
    ),
    "fedadagrad": (
        {"server_learning_rate": 0.05, "beta1": 0.5, "adaptivity": 0.01},
        lambda c: plain_loop.adaptive(c.plain(), c.start, "adagrad", 0.05, 0.5, 0.0, 0.01),
    ),
    "scaffold": ({"server_learning_rate": 0.8}, lambda c: plain_loop.scaffold(c.plain(), c.start, 0.8)[0]),
    "fednova": ({}, lambda c: plain_loop.fednova(c.plain(), c.start)),
    "ditto": ({"pull": 0.3}, lambda c: plain_loop.ditto(c.plain(), c.start, 0.3)[0]),
}
"""By strategy: its settings here, and the paper's loop with the same."""

NO_MOMENTUM = {"fedsgd", "scaffold"}
"""Momentum does nothing in a single step, and SCAFFOLD's paper has none."""


def test_every_strategy_has_a_loop_to_compare_with() -> None:
    assert set(LOOPS) == set(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=8, deadline=None)
@given(cases())
def test_five_rounds_are_the_papers_loop(name: str, case: Case) -> None:
    own, loop = LOOPS[name]
    if name in NO_MOMENTUM:
        case = replace(case, work=replace(case.work, momentum=0.0))
    state = run(find_strategy(name, case.work, **own), case.sites, SEED)
    expected = loop(case)
    assert np.abs(weights_of(state) - expected).max() < TOLERANCE
    assert np.abs(expected - case.start).max() > 1e-3, "nothing was learned"


def test_strategies_are_values_and_no_two_are_alike() -> None:
    built = {name: build(LocalWork()) for name, build in STRATEGIES.items()}
    assert len({repr(strategy.describe()) for strategy in built.values()}) == len(built)
    for name, build in STRATEGIES.items():
        assert build(LocalWork()).describe() == built[name].describe()
        assert pickle.loads(pickle.dumps(built[name].rule)) == built[name].rule  # noqa: S301 (our own bytes)
        assert build.__doc__


def test_an_unknown_name_is_told_which_there_are() -> None:
    with pytest.raises(BadInput, match=r"'fedavgg'.*fedavg, fedsgd.*ditto"):
        find_strategy("fedavgg", LocalWork())


def test_an_unknown_setting_is_told_which_there_are() -> None:
    with pytest.raises(BadInput, match=r"fedprox has no setting pull; it has: proximal, server_learning_rate"):
        find_strategy("fedprox", LocalWork(), pull=0.1)
