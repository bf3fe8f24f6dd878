"""Per-image quality: five numbers that say how a picture was taken, not what it shows.

They are validated at ingest, explain drift in a monitor's alarm, and cut evaluation into slices.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.images import Images

QUALITY_COLUMNS = ("brightness", "contrast", "sharpness", "saturation", "noise")

# Immerkær, "Fast Noise Variance Estimation", CVIU 1996: this kernel ignores constant and linear structure.
_NOISE_KERNEL = ((1, -2, 1), (-2, 4, -2), (1, -2, 1))
_LAPLACE_KERNEL = ((0, 1, 0), (1, -4, 1), (0, 1, 0))


def _filter(luma: NDArray[np.float32], kernel: tuple[tuple[int, ...], ...]) -> NDArray[np.float32]:
    """3×3 correlation of every image, valid region only."""
    height, width = luma.shape[1] - 2, luma.shape[2] - 2
    out = np.zeros((luma.shape[0], height, width), dtype=np.float32)
    for row, weights in enumerate(kernel):
        for column, weight in enumerate(weights):
            if weight:
                out += weight * luma[:, row : row + height, column : column + width]
    return out


def measure(images: Images) -> NDArray[np.float64]:
    """float [n, 5]: the values of QUALITY_COLUMNS of every image.

    images: uint8 [n, height, width, channels]. brightness, contrast (standard deviation of the luminance) and
    saturation (mean of max - min over channels; 0 for greyscale) are in [0, 1]; sharpness is the standard
    deviation of the Laplacian, noise Immerkær's estimate of the noise's standard deviation, both in units of
    full scale.
    """
    pixels = images.astype(np.float32) / 255.0
    grey = pixels.shape[3] == 1  # then the mean over the channels is the channel, which needs no computing
    luma = pixels[:, :, :, 0] if grey else pixels.mean(axis=3)
    count = len(luma)
    high = _filter(luma, _NOISE_KERNEL)
    spread = np.zeros((count, 1), np.float32) if grey else pixels.max(axis=3) - pixels.min(axis=3)
    columns = (
        luma.reshape(count, -1).mean(axis=1),
        luma.reshape(count, -1).std(axis=1),
        _filter(luma, _LAPLACE_KERNEL).reshape(count, -1).std(axis=1),
        spread.reshape(count, -1).mean(axis=1),
        np.abs(high).reshape(count, -1).mean(axis=1) * float(np.sqrt(np.pi / 2.0)) / 6.0,
    )
    return np.stack(columns, axis=1).astype(np.float64)


def quality(images: Images) -> pd.DataFrame:
    """One row per image, columns QUALITY_COLUMNS; see `measure`."""
    return pd.DataFrame(measure(images), columns=list(QUALITY_COLUMNS))
