from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.estimate import NOTHING, Known, calibrate, estimate, known_of_bins, moved

Floats = np.ndarray


def confidences(rng: np.random.Generator, rows: int, hard: float) -> Floats:
    """Of a model that is mostly sure; hard: the share of rows on which it is not."""
    sure, unsure = rng.beta(30, 1, rows), rng.beta(4, 3, rows)
    return np.where(rng.random(rows) < hard, unsure, sure)


def truth(confidence: Floats) -> Floats:
    """How often an overconfident model is right: what it says, less a part."""
    return np.clip(confidence - 0.25 * (1.0 - (2.0 * confidence - 1.0) ** 2) - 0.02, 0.02, 0.98)


def answered(rng: np.random.Generator, confidence: Floats, skew: float = 0.0) -> Known:
    right = rng.random(len(confidence)) < truth(confidence) - skew
    return Known(confidence, np.ones(len(confidence)), right.astype(float))


@pytest.mark.parametrize("hard", [0.1, 0.3, 0.6])
def test_the_interval_holds_the_accuracy_that_is_seen_later_as_often_as_it_says(hard: float) -> None:
    """Under covariate shift: calibrated where a tenth of the rows is hard, asked where more are."""
    rng = np.random.default_rng(0)
    held, trials = 0, 200
    for _ in range(trials):
        held_out = answered(rng, confidences(rng, 400, 0.1))
        window = confidences(rng, 250, hard)
        found = estimate(window, held_out, NOTHING)
        assert found.doubts == ()
        held += found.low <= answered(rng, window).right.mean() <= found.high
    assert held / trials >= 0.88


def test_the_raw_confidence_is_off_where_the_calibrated_one_is_not() -> None:
    rng = np.random.default_rng(1)
    window = confidences(rng, 20_000, 0.5)
    found = estimate(window, answered(rng, confidences(rng, 5000, 0.1)), NOTHING)
    seen = answered(rng, window).right.mean()
    assert abs(found.value - seen) < 0.02 < abs(window.mean() - seen)


def test_without_anything_known_the_model_is_taken_at_its_word_and_that_is_said() -> None:
    window = np.full(100, 0.8)
    found = estimate(window, NOTHING, NOTHING)
    assert found.value == pytest.approx(0.8)
    assert found.low < 0.5  # nobody knows how sure it is of that
    assert found.doubts == ("calibrated on 0 rows alone",)


def test_labels_that_contradict_the_held_out_rows_are_believed_and_cast_doubt() -> None:
    rng = np.random.default_rng(2)
    held_out = answered(rng, confidences(rng, 400, 0.1))
    usual = answered(rng, confidences(rng, 300, 0.1))
    changed = answered(rng, confidences(rng, 300, 0.1), skew=0.4)
    window = confidences(rng, 250, 0.1)
    assert estimate(window, held_out, usual).doubts == ()
    found = estimate(window, held_out, changed)
    assert "are right, where" in found.doubts[0]
    assert found.calibrated_on == 300
    assert abs(found.value - (truth(window).mean() - 0.4)) < 0.08


def test_chance_does_not_cast_doubt() -> None:
    rng = np.random.default_rng(3)
    doubted = 0
    for _ in range(300):
        calibration = calibrate(answered(rng, confidences(rng, 300, 0.2)))
        doubted += bool(moved(calibration, answered(rng, confidences(rng, 150, 0.2))))
    assert doubted <= 4


def test_a_window_outside_the_reference_is_doubted_with_the_reason() -> None:
    rng = np.random.default_rng(4)
    known = answered(rng, confidences(rng, 400, 0.1))
    found = estimate(confidences(rng, 100, 0.1), known, NOTHING, "brightness is 7.1 x its threshold away")
    assert found.doubts == ("outside the reference: brightness is 7.1 x its threshold away",)


def test_bins_of_an_evaluation_say_nearly_what_its_rows_say() -> None:
    rng = np.random.default_rng(5)
    rows = answered(rng, confidences(rng, 4000, 0.3))
    bins = np.minimum((rows.confidence * 15).astype(int), 14)
    sums = [np.bincount(bins, weights=w, minlength=15) for w in (rows.rows, rows.confidence, rows.right)]
    window = confidences(rng, 1000, 0.3)
    by_bins, by_rows = (estimate(window, known, NOTHING).value for known in (known_of_bins(sums), rows))
    assert by_bins == pytest.approx(by_rows, abs=0.01)


@given(
    st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(0, 50), st.floats(0.0, 1.0)), max_size=8),
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20),
)
def test_an_estimate_is_a_share_within_its_interval_whatever_is_known(
    known: list[tuple[float, int, float]], window: list[float]
) -> None:
    table = np.array(known, dtype=float).reshape(-1, 3)
    rows = np.floor(table[:, 1])
    found = estimate(np.array(window), Known(table[:, 0], rows, np.floor(rows * table[:, 2])), NOTHING)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
