"""Labels spread where they are right, are held back where they are not, and name what is doubtful."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.federated.spreading import Told, agreed_labels, beliefs, held_out, suspects

CLASSES = 3


def world(rows: int, bought: int, seed: int = 0, noise: float = 0.2) -> tuple[Told, NDArray[np.int64]]:
    """Three heaps with a class each, a labelled centroid on every heap, and so many bought rows."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(CLASSES, size=rows)
    features = (np.eye(CLASSES)[truth] + rng.normal(0, noise, (rows, CLASSES))).astype(np.float32)
    label = np.where(np.arange(rows) < bought, truth, -1)
    histogram = np.eye(CLASSES, dtype=np.int64) * 20
    return Told(features, label, np.eye(CLASSES, dtype=np.float32), histogram, np.full(CLASSES, 0.5, np.float32)), truth


@pytest.mark.parametrize("how", ["graph", "cluster"])
@given(rows=st.integers(0, 30), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_a_belief_is_a_distribution_or_nothing(how: str, rows: int, share: float, seed: int) -> None:
    told, _ = world(rows, int(share * rows), seed)
    found = beliefs(how, told)
    assert found.shape == (rows, CLASSES)
    assert (found >= 0).all()
    total = found.sum(axis=1)
    assert (np.isclose(total, 1.0) | (total == 0.0)).all()


@pytest.mark.parametrize("how", ["graph", "cluster"])
def test_where_classes_lie_apart_what_is_believed_is_right_at_a_site_that_bought_nothing(how: str) -> None:
    told, truth = world(200, 0)
    found = beliefs(how, told)
    said = found.sum(axis=1) > 0
    assert said.mean() > 0.8
    assert (found.argmax(axis=1) == truth)[said].mean() > 0.95


def test_neighbours_correct_a_centroid_that_lies_among_rows_of_another_class() -> None:
    rng = np.random.default_rng(3)
    truth = np.repeat([0, 1], 60)
    features = (np.array([[0.0, 0.0], [1.0, 0.0]])[truth] + rng.normal(0, 0.1, (120, 2))).astype(np.float32)
    centroids = np.array([[0.0, 0.0], [1.0, 0.0], [0.85, -0.2]], np.float32)
    radius = np.full(3, 9.0, np.float32)
    told = Told(features, np.full(120, -1), centroids, np.eye(2, dtype=np.int64)[[0, 1, 0]], radius)
    by_cluster, by_graph = ((beliefs(how, told).argmax(axis=1) == truth).sum() for how in ("cluster", "graph"))
    assert by_cluster < 117
    assert by_graph > by_cluster + 2


@pytest.mark.parametrize("how", ["graph", "cluster"])
def test_nothing_is_said_where_nobody_bought(how: str) -> None:
    told, _ = world(20, 0)
    silent = Told(told.features, told.label, told.centroids, np.zeros_like(told.histogram), told.radius)
    assert not beliefs(how, silent).any()


@given(bought=st.integers(0, 25), seed=st.integers(0, 99))
def test_only_bought_rows_are_held_out(bought: int, seed: int) -> None:
    told, _ = world(25, bought, seed)
    found = held_out("cluster", told, seed)
    assert not found[bought:].any()


def test_what_is_held_out_is_not_told_by_its_own_label() -> None:
    """Labels drawn at random are guessed at random: whoever saw them would guess them right."""
    told, _ = world(90, 60)
    rng = np.random.default_rng(1)
    label = np.where(told.label >= 0, rng.integers(CLASSES, size=90), -1)
    nearest = told.features.argmax(axis=1)
    histogram = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    np.add.at(histogram, (nearest[label >= 0], label[label >= 0]), 1)
    scattered = Told(told.features, label, told.centroids, histogram, told.radius)
    found = held_out("graph", scattered, 0)
    asked = (label >= 0) & (found.sum(axis=1) > 0)
    assert (found.argmax(axis=1) == label)[asked].mean() < 0.6 if asked.any() else True


def test_confident_learning_finds_most_wrong_labels_and_few_others() -> None:
    told, _ = world(200, 120, noise=0.15)
    wrong = np.arange(0, 120, 12)
    label = told.label.copy()
    label[wrong] = (label[wrong] + 1) % CLASSES
    expected = held_out("graph", Told(told.features, label, told.centroids, told.histogram, told.radius), 0)
    found = set(suspects(label, expected).tolist())
    assert len(found & set(wrong.tolist())) >= 8
    assert len(found - set(wrong.tolist())) <= 4


def test_a_site_with_few_labels_suspects_none() -> None:
    told, _ = world(20, 6)
    assert not len(suspects(told.label, held_out("graph", told, 0)))


histograms = st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=6)


@given(histogram=histograms)
def test_a_cluster_has_a_label_exactly_when_all_its_annotated_rows_share_it(histogram: list[list[int]]) -> None:
    found = agreed_labels(np.array(histogram))
    for row, said in zip(histogram, found, strict=True):
        classes = [index for index, count in enumerate(row) if count]
        assert said == (classes[0] if len(classes) == 1 else -1)
