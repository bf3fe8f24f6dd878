"""Embeddings: exposure drops out, lengths stay within what the distance histograms hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances_argmin_min

from models.embedding import nearest_centroid, normalised_pixels


@given(seed=st.integers(0, 2**32), channels=st.sampled_from([1, 3]))
@settings(max_examples=30, deadline=None)
def test_every_image_has_length_one_and_mean_zero(seed: int, channels: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (4, 6, 5, channels), dtype=np.uint8)
    features = normalised_pixels(images)
    assert features.shape == (4, 6 * 5 * channels)
    assert np.allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-4)
    assert np.allclose(features.mean(axis=1), 0.0, atol=1e-5)


def test_a_flat_picture_has_finite_features() -> None:
    features = normalised_pixels(np.full((1, 8, 8, 1), 90, dtype=np.uint8))
    assert np.isfinite(features).all()
    assert np.linalg.norm(features) <= 1.0


@pytest.mark.parametrize("light", [0.25, 0.5, 0.75])
def test_a_dark_picture_lies_nearest_to_its_bright_twin(light: float) -> None:
    bright = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    dark = np.rint(bright * light).astype(np.uint8)
    nearest, distance = nearest_centroid(normalised_pixels(dark), normalised_pixels(bright).astype(np.float64))
    assert np.array_equal(nearest, np.arange(30))
    assert distance.max() < 0.1


@given(seed=st.integers(0, 2**32), rows=st.integers(0, 20), clusters=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_nearest_centroid_agrees_with_scikit_learn(seed: int, rows: int, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    features, centroids = rng.normal(size=(rows, 5)).astype(np.float32), rng.normal(size=(clusters, 5))
    nearest, distance = nearest_centroid(features, centroids)
    assert nearest.shape == distance.shape == (rows,)
    if rows:
        expected, expected_distance = pairwise_distances_argmin_min(features.astype(np.float64), centroids)
        assert np.array_equal(nearest, expected)
        assert np.allclose(distance, expected_distance, atol=1e-6)
