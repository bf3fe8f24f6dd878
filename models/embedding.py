"""Embeddings without labels: where two pictures of the same thing lie close, whatever the light."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.images import Images


def unit_length(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, d]: every row with mean 0 and length 1."""
    centred = features - features.mean(axis=1, keepdims=True)
    return np.asarray(centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-6), dtype=np.float32)


def normalised_pixels(images: Images) -> NDArray[np.float32]:
    """float32 [n, height·width·channels]: the square root of the pixels, every image with mean 0 and length 1.

    The square root evens out shot noise (Anscombe, 1948), and normalising each image by itself makes exposure and
    contrast drop out: a dark picture lies near its bright twin.
    """
    return unit_length(np.sqrt(images.reshape(len(images), -1).astype(np.float32) / 255.0))


def nearest_centroid(
    features: NDArray[np.float32], centroids: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The index of the nearest centroid and the Euclidean distance to it, each [n].

    features: [n, d]; centroids: [k, d].
    """
    points = features.astype(np.float64)
    squared = (points**2).sum(1)[:, None] - 2.0 * points @ centroids.T + (centroids**2).sum(1)[None, :]
    nearest = squared.argmin(axis=1)
    return nearest, np.sqrt(np.maximum(squared[np.arange(len(points)), nearest], 0.0))
