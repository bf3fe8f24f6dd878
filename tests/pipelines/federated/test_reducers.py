"""Every reducer passes the same battery; the mean is FedAvg's, the median holds against a minority."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.federated.reducers import MEAN, MEDIAN, REDUCERS, Reducer

SIZE = 10


def updates(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A stack [count, SIZE], and what each counts [count]."""
    generator = torch.Generator().manual_seed(seed)
    weights = 1 + 8 * torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.randn(count, SIZE, generator=generator), weights


def reduce(reducer: Reducer, stack: torch.Tensor, weights: torch.Tensor, *cuts: int) -> torch.Tensor:
    """In chunks that begin at `cuts`, whose memory is overwritten once each is reduced, as a kernel does."""
    state = reducer.start()
    for part, part_weights in zip(stack.tensor_split(cuts), weights.tensor_split(cuts), strict=True):
        buffer, own = part.clone(), part_weights.clone()
        state = reducer.add(state, buffer, own)
        buffer.fill_(torch.nan)
        own.fill_(torch.nan)
    return reducer.finish(state)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=1e-6)


battery = pytest.mark.parametrize("reducer", REDUCERS.values(), ids=REDUCERS)
counts, seeds = st.integers(1, 7), st.integers(0, 2**32)
places = st.lists(st.integers(0, 7), max_size=4).map(sorted)


@battery
@given(count=counts, seed=seeds)
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_updates_does_not_matter(reducer: Reducer, count: int, seed: int) -> None:
    stack, weights = updates(count, seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    assert close(reduce(reducer, stack[order], weights[order]), reduce(reducer, stack, weights))


@battery
@given(count=counts, seed=seeds, cuts=places)
@settings(max_examples=25, deadline=None)
def test_how_a_cohort_is_cut_into_chunks_does_not_matter(
    reducer: Reducer, count: int, seed: int, cuts: list[int]
) -> None:
    stack, weights = updates(count, seed)
    assert close(reduce(reducer, stack, weights, *cuts), reduce(reducer, stack, weights))
    assert close(reduce(reducer, stack, weights, *range(1, count)), reduce(reducer, stack, weights))


@battery
@given(count=counts, seed=seeds, cuts=places)
@settings(max_examples=25, deadline=None)
def test_aggregators_that_merge_are_one_over_all(reducer: Reducer, count: int, seed: int, cuts: list[int]) -> None:
    stack, weights = updates(count, seed)
    whole = reduce(reducer, stack, weights)
    aggregators = []
    for part, part_weights in zip(stack.tensor_split(cuts), weights.tensor_split(cuts), strict=True):
        aggregators.append(reducer.start())
        if len(part):
            aggregators[-1] = reducer.add(aggregators[-1], part, part_weights)
    order = np.random.default_rng(seed).permutation(len(aggregators))
    merged = reducer.start()
    for place in order:
        merged = reducer.merge(merged, aggregators[place])
    assert close(reducer.finish(merged), whole)


@battery
@given(count=counts, seed=seeds)
@settings(max_examples=25, deadline=None)
def test_equal_updates_are_a_fixed_point_whatever_their_weights(reducer: Reducer, count: int, seed: int) -> None:
    stack, weights = updates(count, seed)
    assert close(reduce(reducer, stack[:1].expand(count, SIZE), weights), stack[0])


@battery
@given(count=st.integers(1, 6), seed=seeds, cuts=places)
@settings(max_examples=25, deadline=None)
def test_an_update_of_weight_zero_counts_for_nothing(reducer: Reducer, count: int, seed: int, cuts: list[int]) -> None:
    stack, weights = updates(count, seed)
    for place in (0, count):
        wild = torch.cat([stack[:place], 1e3 * stack[:1], stack[place:]])
        with_it = torch.cat([weights[:place], torch.zeros(1, dtype=torch.float64), weights[place:]])
        assert close(reduce(reducer, wild, with_it, *cuts), reduce(reducer, stack, weights))


@battery
@given(count=counts, seed=seeds)
@settings(max_examples=25, deadline=None)
def test_the_result_lies_between_the_updates(reducer: Reducer, count: int, seed: int) -> None:
    stack, weights = updates(count, seed)
    reduced = reduce(reducer, stack, weights)
    assert (reduced >= stack.amin(0) - 1e-6).all()
    assert (reduced <= stack.amax(0) + 1e-6).all()
    assert reduced.shape == (SIZE,)
    assert reduced.dtype == torch.float32


@battery
def test_a_reducer_starts_afresh_every_round_and_leaves_updates_alone(reducer: Reducer) -> None:
    stack, weights = updates(4, 0)
    before = stack.clone(), weights.clone()
    reducer.finish(reducer.add(reducer.add(reducer.start(), stack[:1], weights[:1]), stack[1:], weights[1:]))
    assert torch.equal(stack, before[0])
    assert torch.equal(weights, before[1])
    assert close(reduce(reducer, stack[:1], weights[:1]), stack[0])


@given(count=st.integers(1, 9), seed=seeds, cuts=places)
@settings(max_examples=25, deadline=None)
def test_the_mean_is_numpys_weighted_by_examples(count: int, seed: int, cuts: list[int]) -> None:
    stack, weights = updates(count, seed)
    expected = np.average(stack.numpy().astype(np.float64), axis=0, weights=weights.numpy())
    assert np.allclose(reduce(MEAN, stack, weights, *cuts).numpy(), expected, rtol=0, atol=1e-6)


def test_the_mean_of_many_chunks_is_as_exact_as_of_one() -> None:
    """Summed in float32, ten thousand sites would lose the sixth digit."""
    stack, weights = updates(10_000, 0)
    expected = np.average((stack + 100).numpy().astype(np.float64), axis=0, weights=weights.numpy())
    reduced = reduce(MEAN, stack + 100, weights, *range(1, 10_000))
    assert np.allclose(reduced.numpy(), expected.astype(np.float32), rtol=1e-7, atol=0)


@given(count=st.integers(1, 9), seed=seeds, cuts=places)
@settings(max_examples=25, deadline=None)
def test_the_median_is_numpys_also_of_an_even_number(count: int, seed: int, cuts: list[int]) -> None:
    stack, weights = updates(count, seed)
    reduced = reduce(MEDIAN, stack, weights, *cuts)
    assert np.allclose(reduced.numpy(), np.median(stack.numpy(), axis=0), rtol=0, atol=1e-6)


def test_the_median_holds_against_a_minority_of_arbitrary_updates() -> None:
    honest, weights = updates(5, 0)
    wild, _ = updates(4, 1)
    stack = torch.cat([honest, 1e6 * wild])
    reduced = reduce(MEDIAN, stack, torch.cat([weights, torch.full((4,), 1e9, dtype=torch.float64)]))
    assert (reduced >= honest.amin(0)).all()
    assert (reduced <= honest.amax(0)).all()
