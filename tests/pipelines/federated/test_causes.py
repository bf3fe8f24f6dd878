"""Each cause where it was put, and tests that keep their rate for any rows whatever."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.federated.causes import (
    CAUSES,
    MEANING,
    NEXT_STEP,
    Causes,
    Federated,
    Learned,
    Trusted,
    Wrong,
    causes,
    unreadable_p,
    unseen_p,
)

RATES = st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5])
CENTRES = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
"""One cluster a class, and beside the first a second one of its class."""
BESIDE = np.array([3.0, 0.0])


@given(st.integers(2, 60), st.integers(1, 4), RATES, st.integers(0, 2**32 - 1))
def test_of_rows_that_are_alike_no_more_than_the_rate_is_called_unseen(
    rows: int, classes: int, rate: float, seed: int
) -> None:
    """Every row of a set in turn against the others: the count is bounded for any set, not only on average."""
    rng = np.random.default_rng(seed)
    features = rng.standard_t(2, size=(rows, 3)) * rng.choice([0.0, 1.0, 100.0], size=(rows, 1))
    labels = rng.integers(0, classes, size=rows)
    p = np.array([one_against_the_others(features, labels, row) for row in range(rows)])
    assert (p <= rate).sum() <= rate * rows


def one_against_the_others(features: NDArray[np.float64], labels: NDArray[np.int64], row: int) -> float:
    others = np.arange(len(labels)) != row
    learned = Learned(features[others], labels[others], np.zeros((others.sum(), 1)), np.zeros(others.sum(), dtype=int))
    return float(unseen_p(learned, features[row : row + 1], labels[row : row + 1])[0])


@given(st.integers(2, 60), RATES, st.integers(0, 2**32 - 1))
def test_of_pictures_taken_alike_no_more_than_the_rate_is_called_unreadable(rows: int, rate: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    quality = rng.standard_t(2, size=(rows, 5)) * rng.choice([0.0, 1.0, 50.0], size=(rows, 5))
    others = [np.delete(quality, row, axis=0) for row in range(rows)]
    p = np.array([unreadable_p(known, quality[row][None])[0][0] for row, known in enumerate(others)])
    assert (p <= rate).sum() <= rate * rows


def test_a_row_far_from_all_learned_ones_has_the_smallest_p_value_there_is() -> None:
    learned = site()
    far = np.array([[500.0, 500.0]])
    assert unseen_p(learned, far, np.array([0])) == pytest.approx(1 / (len(learned.labels) + 1))
    assert unseen_p(learned, CENTRES[:1], np.array([0])) > 0.5


def site(seed: int = 0, each: int = 40) -> Learned:
    """Three classes in three clusters, and half as many rows of class 0 again in a fourth one beside the first."""
    rng = np.random.default_rng(seed)
    places = np.concatenate([np.repeat(CENTRES, each, axis=0), np.repeat(BESIDE[None], each // 2, axis=0)])
    labels = np.concatenate([np.repeat(np.arange(3), each), np.zeros(each // 2, dtype=np.int64)])
    cluster = np.concatenate([np.repeat(np.arange(3), each), np.full(each // 2, 3)])
    features = places + rng.normal(0, 0.7, size=places.shape)
    return Learned(features, labels, rng.normal(0.5, 0.02, size=(len(labels), 2)), cluster)


def federation(truths: NDArray[np.int64] | None = None) -> Federated:
    centroids = np.vstack([CENTRES, BESIDE])
    nothing = np.zeros((4, 4), dtype=np.int64)
    return Federated(centroids, np.full(4, 2.5), nothing, nothing if truths is None else truths)


def error_at(place: NDArray[np.float64], truth: int, prediction: int, quality: float = 0.5) -> Wrong:
    cluster = np.linalg.norm(np.vstack([CENTRES, BESIDE]) - place, axis=1).argmin()
    row = np.array([[quality, 0.5]])
    return Wrong(place[None], row, *(np.array([value]) for value in (truth, prediction, cluster, -1)))


def cause_of(found: Causes) -> str:
    return CAUSES[int(found.cause[0])]


NOBODY = Trusted(np.zeros((0, 2)), np.zeros(0, dtype=np.int64))


def test_a_class_that_was_never_learned_is_unseen_wherever_it_lies() -> None:
    for place in (CENTRES[0], CENTRES[1] + 3.0, np.array([40.0, 40.0])):
        assert cause_of(causes(site(), NOBODY, federation(), error_at(place, 3, 1), 0.05)) == "unseen"


def test_what_only_other_sites_have_learned_is_not_unseen() -> None:
    labels = np.zeros((4, 4), dtype=np.int64)
    labels[0, 3] = 5
    elsewhere = replace(federation(), labels=labels)
    found = causes(site(), NOBODY, elsewhere, error_at(CENTRES[0], 3, 0), 0.05)
    assert cause_of(found) == "mislearned"
    assert found.elsewhere[0]
    far = causes(site(), NOBODY, elsewhere, error_at(CENTRES[0] + 20.0, 3, 0), 0.05)
    assert cause_of(far) == "unseen"
    alone = replace(elsewhere, labels=np.minimum(labels, 1))
    assert cause_of(causes(site(), NOBODY, alone, error_at(CENTRES[0], 3, 0), 0.05)) == "unseen"


def test_an_error_among_rows_with_its_own_label_is_mislearned() -> None:
    assert cause_of(causes(site(), NOBODY, federation(), error_at(CENTRES[1], 1, 2), 0.05)) == "mislearned"


def flipped() -> Learned:
    """The rows beside the first cluster say class 2, and are of class 0."""
    learned = site()
    return replace(learned, labels=np.where(learned.cluster == 3, 2, learned.labels))


def test_a_cluster_of_wrong_labels_is_found_by_trusted_rows_and_by_what_lies_around_it() -> None:
    rng = np.random.default_rng(1)
    trusted = Trusted(BESIDE + rng.normal(0, 0.7, size=(8, 2)), np.zeros(8, dtype=np.int64))
    truths = np.zeros((4, 4), dtype=np.int64)
    truths[3, 0] = 8
    found = causes(flipped(), trusted, federation(truths), error_at(BESIDE, 0, 2), 0.05)
    assert cause_of(found) == "mislabelled"
    assert found.doubt[0] > 2.0


def test_an_error_does_not_vote_against_the_labels_near_itself() -> None:
    """An odd row of a class that lies among rows rightly labelled as another: their own kind speaks for them."""
    learned, place = site(), CENTRES[1]
    rng = np.random.default_rng(2)
    others = CENTRES[1] + rng.normal(0, 0.7, size=(8, 2))
    trusted = Trusted(np.vstack([place, others]), np.array([2, *[1] * 8]))
    truths = np.zeros((4, 4), dtype=np.int64)
    truths[1] = [0, 8, 1, 0]
    itself = replace(error_at(place, 2, 1), trusted=np.array([0]))
    found = causes(learned, trusted, federation(truths), itself, 0.05)
    assert cause_of(found) == "unseen"
    assert found.doubt[0] < -1.0


def test_a_dark_picture_is_unreadable_whatever_lies_near_it() -> None:
    for place, truth in ((CENTRES[0], 0), (CENTRES[0], 3)):
        found = causes(site(), NOBODY, federation(), error_at(place, truth, 1, quality=0.05), 0.05)
        assert cause_of(found) == "unreadable"
        assert found.worst_column[0] == 0


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_site_with_hardly_a_row_gets_an_answer(rows: int) -> None:
    learned = Learned(np.zeros((rows, 2)), np.zeros(rows, dtype=int), np.zeros((rows, 2)), np.zeros(rows, dtype=int))
    found = causes(learned, NOBODY, federation(), error_at(CENTRES[0], 0, 1), 0.05)
    assert cause_of(found) == "mislearned", "too few rows to say more"
    assert found.p_unseen[0] == 1.0, "every row is at no distance from the others, or there is none"


def test_every_cause_says_what_it_means_and_what_to_do() -> None:
    assert set(MEANING) == set(NEXT_STEP) == set(CAUSES)
