"""How new pictures of a site were exposed, seen from the old ones: a fitted sensor model, and old pictures through it.

When the light changes, a site's old labelled rows still say what things look like; only their exposure is wrong. The
site fits gain and noise so that its old pictures, seen through the model, have the histograms of the new ones (no
label and no knowledge of the cause is needed), and trains on old rows that look new. The noise model is that of
EMVA Standard 1288: variance linear in the signal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.images import Images

_BINS = 64
_TRIALS = 120
_SAMPLE = 100
MINIMUM_ROWS = 20
"""Fewer new pictures than this say too little about their exposure."""


@dataclass(frozen=True)
class Sensor:
    """pixel → clip(gain · pixel + noise), the noise Gaussian with variance shot · gain · pixel + read²."""

    gain: float
    shot: float
    read: float

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """float [n, c, h, w] in [0, 1] as this sensor would have seen them."""
        signal = self.gain * images
        spread = torch.sqrt(self.shot * signal + self.read**2)
        return (signal + torch.randn(images.shape, generator=generator) * spread).clamp(0.0, 1.0)


def fit_sensor(old: Images, new: Images, seed: int) -> Sensor | None:
    """The sensor through which `old` pictures look like `new` ones; None where either are too few.

    Random search on the distance between the cumulative histograms of pixels and of horizontal differences.
    """
    if min(len(old), len(new)) < MINIMUM_ROWS:
        return None
    rng = np.random.default_rng(seed)
    sample = old[rng.permutation(len(old))[:_SAMPLE]].astype(np.float64) / 255.0
    target = _histograms(new.astype(np.float64) / 255.0)

    def distance(candidate: NDArray[np.float64]) -> float:
        # The same draws for every candidate: only the candidates are compared.
        noise = np.random.default_rng(seed).normal(size=sample.shape)
        gain, shot, read = candidate
        seen = np.clip(gain * sample + noise * np.sqrt(shot * gain * sample + read**2), 0.0, 1.0)
        return float(np.abs(_histograms(seen) - target).sum())

    best = np.array([new.mean() / 255.0 / max(sample.mean(), 1e-9), 0.02, 0.02])
    nearest = distance(best)
    for trial in range(_TRIALS):
        step = 0.5 if trial < _TRIALS // 2 else 0.15
        candidate = best * np.exp(rng.normal(size=3) * step)
        candidate[0] = min(candidate[0], 2.0)
        if (found := distance(candidate)) < nearest:
            best, nearest = candidate, found
    return Sensor(*(float(value) for value in best))


def _histograms(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.histogram(pixels, _BINS, (0.0, 1.0))[0]
    steps = np.histogram(np.diff(pixels, axis=2), _BINS, (-1.0, 1.0))[0]
    return np.concatenate([np.cumsum(values) / values.sum(), np.cumsum(steps) / steps.sum()])
