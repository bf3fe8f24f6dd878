"""Every reducer passes the same battery; the mean is FedAvg's, the median holds against a minority."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.federated.jobs import Parameters
from pipelines.federated.reducers import MEAN, MEDIAN, REDUCERS, Reducer

Weighted = list[tuple[Parameters, float]]


def updates(count: int, seed: int) -> Weighted:
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    return [
        (
            {"a": torch.randn(3, 2, generator=generator), "b": torch.randn(4, generator=generator)},
            float(rng.uniform(1, 9)),
        )
        for _ in range(count)
    ]


def reduce(reducer: Reducer, given_updates: Weighted) -> Parameters:
    state = reducer.start()
    for update, weight in given_updates:
        state = reducer.add(state, {name: tensor.clone() for name, tensor in update.items()}, weight)
    return reducer.finish(state)


def close(one: Parameters, other: Parameters, tolerance: float = 1e-6) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[n], other[n], rtol=0, atol=tolerance) for n in one)


battery = pytest.mark.parametrize("reducer", REDUCERS.values(), ids=REDUCERS)


@battery
@given(count=st.integers(1, 7), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_updates_does_not_matter(reducer: Reducer, count: int, seed: int) -> None:
    some = updates(count, seed)
    shuffled = [some[i] for i in np.random.default_rng(seed).permutation(count)]
    assert close(reduce(reducer, some), reduce(reducer, shuffled))


@battery
@given(count=st.integers(1, 7), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_equal_updates_are_a_fixed_point_whatever_their_weights(reducer: Reducer, count: int, seed: int) -> None:
    same = updates(1, seed)[0][0]
    assert close(reduce(reducer, [(same, weight) for _, weight in updates(count, seed)]), same)


@battery
@given(count=st.integers(1, 6), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_an_update_of_weight_zero_counts_for_nothing(reducer: Reducer, count: int, seed: int) -> None:
    some = updates(count, seed)
    wild = ({name: tensor * 1e3 for name, tensor in some[0][0].items()}, 0.0)
    for place in (0, count):
        assert close(reduce(reducer, [*some[:place], wild, *some[place:]]), reduce(reducer, some))


@battery
@given(count=st.integers(1, 7), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_the_result_lies_between_the_updates(reducer: Reducer, count: int, seed: int) -> None:
    some = updates(count, seed)
    for name, tensor in reduce(reducer, some).items():
        stack = torch.stack([update[name] for update, _ in some])
        assert (tensor >= stack.amin(0) - 1e-6).all()
        assert (tensor <= stack.amax(0) + 1e-6).all()
        assert tensor.dtype == torch.float32


@battery
def test_a_reducer_starts_afresh_every_round_and_leaves_updates_alone(reducer: Reducer) -> None:
    some = updates(4, 0)
    before = [{name: tensor.clone() for name, tensor in update.items()} for update, _ in some]
    state = reducer.start()
    for update, weight in some:
        state = reducer.add(state, update, weight)
    reducer.finish(state)
    assert all(close(update, old, 0.0) for (update, _), old in zip(some, before, strict=True))
    assert close(reduce(reducer, some[:1]), some[0][0])


@given(count=st.integers(1, 9), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_the_mean_is_weighted_by_examples(count: int, seed: int) -> None:
    some = updates(count, seed)
    weights = [weight for _, weight in some]
    for name, tensor in reduce(MEAN, some).items():
        expected = np.average([update[name].numpy().astype(np.float64) for update, _ in some], axis=0, weights=weights)
        assert np.allclose(tensor.numpy(), expected, atol=1e-6)


@given(count=st.integers(1, 9), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_the_median_is_numpys_also_of_an_even_number(count: int, seed: int) -> None:
    some = updates(count, seed)
    for name, tensor in reduce(MEDIAN, some).items():
        assert np.allclose(tensor.numpy(), np.median([update[name].numpy() for update, _ in some], axis=0), atol=1e-6)


def test_the_median_holds_against_a_minority_of_arbitrary_updates() -> None:
    honest = updates(5, 0)
    wild = [({name: tensor * 1e6 for name, tensor in update.items()}, 1e9) for update, _ in updates(4, 1)]
    for name, tensor in reduce(MEDIAN, honest + wild).items():
        stack = torch.stack([update[name] for update, _ in honest])
        assert (tensor >= stack.amin(0)).all()
        assert (tensor <= stack.amax(0)).all()
