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
    features: NDArray[np.float32], centroids: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The index of the nearest centroid and the Euclidean distance to it, each [n].

    features: [n, d]; centroids: [k, d]. In chunks: no [n, k] matrix is ever whole.
    """
    from sklearn.metrics import pairwise_distances_argmin_min

    if not len(features):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    nearest, distance = pairwise_distances_argmin_min(features, centroids.astype(features.dtype))
    return nearest.astype(np.int64), distance.astype(np.float64)
