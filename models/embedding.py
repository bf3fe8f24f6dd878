"""Embeddings without labels: where two pictures of the same thing lie close, whatever the light."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.images import Images


def normalised_pixels(images: Images) -> NDArray[np.float32]:
    """float32 [n, height·width·channels]: every image with mean 0 and length 1.

    Normalising each image by itself makes exposure and contrast drop out: a dark picture lies near its bright twin.
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6), dtype=np.float32)
