from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.bins import count, cuts_of, tally

NUMBERS = st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=1, max_size=60)


@given(NUMBERS, NUMBERS)
def test_every_row_lies_in_one_bin_and_the_shares_of_the_reference_add_up(
    now: list[float | None], was: list[float | None]
) -> None:
    current, reference = pd.Series(now, dtype=float), pd.Series(was, dtype=float)
    found = tally(current, reference, cuts_of(reference, 10), worth=10.0, limit=100.0)
    assert sum(found.counts) == len(now)
    assert found.counts[-1] == current.isna().sum()
    assert len(found.counts) == len(found.expected)
    assert sum(found.expected) == pytest.approx(1.0, abs=1e-4)


def test_windows_counted_apart_add_up_to_the_window_counted_whole() -> None:
    rng = np.random.default_rng(0)
    cuts = cuts_of(pd.Series(rng.normal(size=2000)), 10)
    first, second = pd.Series(rng.normal(size=70)), pd.Series(rng.normal(size=50))
    assert (count(first, cuts) + count(second, cuts) == count(pd.concat([first, second]), cuts)).all()
    assert len(cuts) == 9


def test_a_small_reference_has_fewer_bins_and_a_constant_one_no_more_than_two() -> None:
    assert len(cuts_of(pd.Series(np.arange(120.0)), 10)) == 3
    assert len(cuts_of(pd.Series(np.zeros(500)), 10)) == 1


def test_classes_that_the_reference_never_saw_lie_with_the_missing_ones() -> None:
    was = pd.Series(["a", "b", "b", None], dtype="object")
    cuts = cuts_of(was, 10)
    assert cuts == ["a", "b"]
    assert count(pd.Series(["b", "z", None], dtype="object"), cuts).tolist() == [0, 1, 2]
