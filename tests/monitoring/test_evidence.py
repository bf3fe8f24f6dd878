from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring import evidence
from monitoring.evidence import Binned

SHARES = np.array([0.2, 0.3, 0.3, 0.2, 0.0])


def column(counts: np.ndarray, worth: float = 100.0, limit: float = 2000.0, ordered: bool = True) -> Binned:
    windows = len(counts)
    expected, rows = np.tile(SHARES, (1, windows, 1)), np.full((1, windows), worth)
    return Binned(counts[None].astype(float), expected, rows, np.array([limit]), ordered)


def log_since(column: Binned, persistence: int) -> np.ndarray:
    """Of one column."""
    return evidence.log_since(column, persistence)[0]


def stable(rng: np.random.Generator, windows: int, rows: int = 50, worth: float = 100.0) -> np.ndarray:
    """Windows of one world, whose shares lie around the reference's as far as its rows leave open."""
    return rng.multinomial(rows, rng.dirichlet(worth * SHARES + 0.5), size=windows)


def test_while_nothing_changes_the_evidence_of_a_window_is_one_at_most_on_average() -> None:
    rng = np.random.default_rng(0)
    for ordered in (True, False):
        values = [np.exp(log_since(column(stable(rng, 1), ordered=ordered), 1)[0]) for _ in range(4000)]
        assert 0.5 < np.mean(values) < 1.2


def test_the_detector_passes_a_level_in_as_many_windows_or_more_on_average() -> None:
    """The sum over all starts is at most the number of windows, whenever one looks; so 20 is passed seldom in 10."""
    rng = np.random.default_rng(1)
    worlds = [stable(rng, 10) for _ in range(400)]
    sums = np.array([[np.exp(log_since(column(world[: t + 1]), 1)).sum() for t in range(10)] for world in worlds])
    assert sums[:, -1].mean() < 10.0
    assert (sums.max(axis=1) >= 20.0).mean() <= 0.5
    assert (sums.max(axis=1) >= 1000.0).mean() <= 0.01


def test_a_small_shift_adds_up_over_windows_and_points_at_its_beginning() -> None:
    rng = np.random.default_rng(2)
    before = rng.multinomial(200, SHARES, size=10)
    after = rng.multinomial(200, [0.26, 0.33, 0.26, 0.15, 0.0], size=8)
    found = [log_since(column(np.concatenate([before, after[:n]])), 1) for n in range(1, 9)]
    totals = [np.logaddexp.reduce(each) for each in found]
    assert totals[0] < np.log(1000) < totals[-1]
    assert abs(int(np.argmax(found[-1])) - 10) <= 2


def test_what_is_too_small_to_matter_never_makes_an_alarm() -> None:
    """A shift of a tenth of a standard deviation, without noise and for ever, against the rows that stand for it."""
    moved = np.array([0.2 + 0.028, 0.3 + 0.014, 0.3 - 0.014, 0.2 - 0.028, 0.0])
    counts = np.tile(moved * 1000, (50, 1))
    assert log_since(column(counts, worth=100.0), 1).max() < np.log(1000)


def test_no_single_window_carries_an_alarm_that_has_to_persist() -> None:
    rng = np.random.default_rng(3)
    counts = rng.multinomial(100, SHARES, size=20)
    counts[12] = [100, 0, 0, 0, 0]
    assert log_since(column(counts[:13]), 1).max() > 20
    assert all(log_since(column(counts[:end]), 2).max() < np.log(1000) for end in range(13, 21))
    counts[13] = [100, 0, 0, 0, 0]
    assert log_since(column(counts[:14]), 2).max() > 20
    assert log_since(column(counts[:14]), 3).max() < np.log(1000)


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 12))
@settings(max_examples=40)
def test_a_change_is_at_least_as_old_as_it_has_to_be(seed: int, persistence: int, windows: int) -> None:
    counts = np.random.default_rng(seed).multinomial(60, [0.4, 0.3, 0.2, 0.1, 0.0], size=windows)
    found = log_since(column(counts), persistence)
    assert np.isfinite(found).sum() == max(0, windows - persistence + 1)
    assert not np.isnan(found).any()


@given(st.permutations(range(4)), st.integers(0, 2**31))
@settings(max_examples=25)
def test_the_order_of_classes_does_not_matter(order: list[int], seed: int) -> None:
    counts = np.random.default_rng(seed).multinomial(80, [0.1, 0.5, 0.2, 0.2, 0.0], size=5)
    place = [*order, 4]
    here = Binned(
        counts[None][..., place].astype(float), np.tile(SHARES[place], (1, 5, 1)), np.full((1, 5), 90.0),
        np.array([900.0]), False,
    )  # fmt: skip
    np.testing.assert_allclose(log_since(column(counts, 90.0, 900.0, False), 2), log_since(here, 2))


def test_a_column_without_any_value_and_empty_windows_are_no_error() -> None:
    empty = np.zeros((3, 5))
    assert (log_since(column(empty), 1) <= 0.0).all()
    missing = np.tile([0, 0, 0, 0, 100], (3, 1))
    assert log_since(column(missing), 2).max() > np.log(1000)


def test_columns_together_have_the_evidence_that_each_has_alone() -> None:
    rng = np.random.default_rng(5)
    columns = [column(rng.multinomial(90, [0.3, 0.3, 0.2, 0.2, 0.0], size=7), worth) for worth in (20.0, 300.0)]
    parts = [np.concatenate([getattr(c, field) for c in columns]) for field in ("counts", "expected", "worth", "limit")]
    both = evidence.log_since(Binned(parts[0], parts[1], parts[2], parts[3], True), 2)
    np.testing.assert_allclose(both, [log_since(each, 2) for each in columns])
