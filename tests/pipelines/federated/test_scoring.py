"""Sums that sites make: scikit-learn's figures follow from them, and pooling rows or adding sums is the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pipelines.federated.jobs import ModelScores
from pipelines.federated.scoring import (
    CONFIDENCE_BINS,
    SCORE_BINS,
    add_scores,
    expected_calibration_error,
    histogram_auc,
    macro_auc,
    replicate_weights,
    score_model,
    slice_counts,
)

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def made_up(rows: int, classes: int, seed: int) -> tuple[Floats, Labels]:
    """Probabilities that know something of the labels, every class present."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rows) % classes).astype(np.int64)
    logits = rng.normal(size=(rows, classes)) + 1.2 * np.eye(classes)[labels]
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True), labels


def scored(probabilities: Floats, labels: Labels, with_auc: bool = False, weights: Floats | None = None) -> ModelScores:
    return score_model(probabilities, labels, np.ones((1, len(labels))) if weights is None else weights, with_auc)


@given(rows=st.integers(10, 300), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_auc_of_two_classes_is_scikit_learns_up_to_the_bin_width(rows: int, seed: int) -> None:
    probabilities, labels = made_up(rows, 2, seed)
    expected = roc_auc_score(labels, probabilities[:, 1])
    # Only pairs within one bin are counted as ties; each can be off by one half.
    bins = np.minimum((probabilities[:, 1] * SCORE_BINS).astype(int), SCORE_BINS - 1)
    shared = sum(((bins == b) & (labels == 0)).sum() * ((bins == b) & (labels == 1)).sum() for b in np.unique(bins))
    tolerance = 0.5 * shared / ((labels == 0).sum() * (labels == 1).sum())
    assert abs(macro_auc(scored(probabilities, labels).scores) - expected) <= tolerance + 1e-12
    # With ten rows there are 25 pairs, and one that shares a bin is 0.02 of them already.
    assert rows < 100 or tolerance < 0.02


@given(rows=st.integers(4, 200), seed=st.integers(0, 2**32), grid=st.sampled_from([2, 5, 50, SCORE_BINS]))
@settings(max_examples=40, deadline=None)
def test_auc_is_exact_with_ties_when_scores_lie_on_the_grid(rows: int, seed: int, grid: int) -> None:
    rng = np.random.default_rng(seed)
    labels = (np.arange(rows) % 2).astype(np.int64)
    positive = (rng.integers(0, grid, rows) * (SCORE_BINS // grid) + 0.5) / SCORE_BINS
    probabilities = np.stack([1 - positive, positive], axis=1)
    assert macro_auc(scored(probabilities, labels).scores) == pytest.approx(roc_auc_score(labels, positive), abs=1e-12)


def test_auc_of_many_classes_is_the_macro_mean_of_one_against_the_rest() -> None:
    probabilities, labels = made_up(600, 4, 0)
    expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert macro_auc(scored(probabilities, labels).scores) == pytest.approx(expected, abs=2e-3)


def test_auc_without_one_side_is_unknown_and_leaves_the_other_classes_alone() -> None:
    probabilities, labels = made_up(60, 3, 0)
    keep = labels != 2
    areas = histogram_auc(scored(probabilities[keep], labels[keep]).scores)
    assert np.isnan(areas[2])
    assert macro_auc(scored(probabilities[keep], labels[keep]).scores) == pytest.approx(np.mean(areas[:2]))
    assert np.isnan(macro_auc(scored(probabilities[labels == 0], labels[labels == 0]).scores))
    assert np.isnan(macro_auc(scored(probabilities[:0], labels[:0]).scores))


@given(rows=st.integers(1, 200), classes=st.integers(2, 5), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_calibration_error_is_the_weighted_gap_between_confidence_and_accuracy(
    rows: int, classes: int, seed: int
) -> None:
    probabilities, labels = made_up(rows, classes, seed)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for low in np.arange(CONFIDENCE_BINS) / CONFIDENCE_BINS:
        inside = (confidence >= low) & (confidence < low + 1 / CONFIDENCE_BINS)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    found = scored(probabilities, labels)
    assert expected_calibration_error(found.confidence_bins) == pytest.approx(expected, abs=1e-9)
    assert found.correct == correct.sum()


def test_calibration_error_of_certain_models_is_their_error_rate() -> None:
    certain = np.eye(2)[np.array([0, 1, 1, 0])]
    assert expected_calibration_error(scored(certain, np.array([0, 1, 0, 1])).confidence_bins) == 0.5
    assert np.isnan(expected_calibration_error(scored(certain[:0], np.array([], dtype=np.int64)).confidence_bins))


def same(one: ModelScores, other: ModelScores) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("confidence_bins", "scores", "replicate_correct")]
    return one.correct == other.correct and all(
        np.allclose(a, b, atol=1e-9) for a, b in [*pairs, (one.replicate_scores, other.replicate_scores)]
    )


@given(rows=st.integers(3, 60), sites=st.integers(1, 4), with_auc=st.booleans(), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_sums_of_sites_are_the_sums_of_their_pooled_rows(rows: int, sites: int, with_auc: bool, seed: int) -> None:
    probabilities, labels = made_up(rows, 2 if with_auc else 3, seed)
    weights = replicate_weights(7, rows, seed)
    owner = np.random.default_rng(seed).integers(0, sites, rows)
    parts = [
        scored(probabilities[owner == s], labels[owner == s], with_auc, weights[:, owner == s]) for s in range(sites)
    ]
    assert same(add_scores(parts), scored(probabilities, labels, with_auc, weights))


def test_replicates_are_the_metric_under_their_own_row_weights() -> None:
    probabilities, labels = made_up(80, 2, 1)
    probabilities = (np.floor(probabilities * 100) + 0.5) / 100
    weights = replicate_weights(30, 80, 5)
    found = scored(probabilities, labels, True, weights)
    areas = histogram_auc(found.replicate_scores)
    for draw in range(30):
        expected = roc_auc_score(labels, probabilities[:, 1], sample_weight=weights[draw])
        assert areas[draw] == pytest.approx(expected, abs=1e-9)
        correct = probabilities.argmax(axis=1) == labels
        assert found.replicate_correct[draw] == weights[draw] @ correct


def test_replicate_weights_depend_on_the_seed_and_average_to_one() -> None:
    weights = replicate_weights(200, 50, 1)
    assert np.array_equal(weights, replicate_weights(200, 50, 1))
    assert not np.array_equal(weights, replicate_weights(200, 50, 2))
    assert weights.mean() == pytest.approx(1.0, abs=0.05)
    assert weights.var() == pytest.approx(1.0, abs=0.1)


@given(rows=st.integers(0, 60), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_slices_hold_every_row_once(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, correct = rng.uniform(size=rows), rng.uniform(size=(2, rows)) < 0.7
    edges = (0.2, 0.5, 0.9)
    counts = slice_counts(values, edges, correct)
    assert counts.shape == (4, 3)
    assert counts[:, 0].sum() == rows
    assert np.array_equal(counts[:, 1:].sum(axis=0), correct.sum(axis=1))
    assert counts[0, 0] == (values < 0.2).sum()
    assert counts[3, 2] == correct[1][values >= 0.9].sum()
