from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.binning import count, hide_rare

COUNTS = arrays(np.int64, st.tuples(st.integers(1, 3), st.integers(1, 15)), elements=st.integers(0, 30))


@given(st.lists(st.floats(-5, 5) | st.just(float("nan")), max_size=40), st.lists(st.floats(-4, 4), max_size=6))
def test_every_number_is_in_one_bin_and_counts_add_up(values: list[float], edges: list[float]) -> None:
    array, inner = np.array(values, dtype=float), sorted(edges)
    whole = count(array, inner)
    assert whole.sum() == np.isfinite(array).sum()
    half = len(array) // 2
    assert (count(array[:half], inner) + count(array[half:], inner) == whole).all()


@given(COUNTS, st.integers(1, 12), st.booleans())
def test_no_bin_is_told_that_has_few_rows(counts: np.ndarray, smallest: int, ordered: bool) -> None:
    told = hide_rare(counts, smallest, ordered)
    assert told.shape == counts.shape
    assert ((told == 0) | (told >= smallest)).all()


@given(COUNTS, st.integers(1, 12))
def test_merging_neighbours_keeps_the_total_unless_it_is_too_small_itself(counts: np.ndarray, smallest: int) -> None:
    total, told = counts.sum(axis=1), hide_rare(counts, smallest, ordered=True).sum(axis=1)
    assert (told == np.where(total >= smallest, total, 0)).all()


@given(COUNTS, st.booleans())
def test_nothing_is_hidden_where_one_row_is_enough(counts: np.ndarray, ordered: bool) -> None:
    assert (hide_rare(counts, 1, ordered) == counts).all()


def test_a_rare_bin_goes_to_its_neighbour_and_a_rare_class_to_none() -> None:
    counts = np.array([9, 2, 0, 4, 8, 1])
    assert hide_rare(counts, 5, ordered=True).tolist() == [9, 0, 0, 6, 9, 0]
    assert hide_rare(counts, 5, ordered=False).tolist() == [9, 0, 0, 0, 8, 0]
