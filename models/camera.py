"""Cameras and light: how the same scene looks at another site, and when somebody turns off the lamp.

A site's camera differs in brightness, colour and sharpness. Low light is the drift of the rehearsals: fewer
photons, so shot noise (Poisson), then the sensor's read noise (Gaussian), after the usual model of an image sensor
(EMVA Standard 1288, "Linear camera model").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import BadInput
from models.images import Images

FULL_WELL_ELECTRONS = 20.0
"""Electrons of a full-scale pixel in good light: a small, cheap sensor."""
READ_NOISE_ELECTRONS = 1.0
"""Standard deviation of the sensor's read noise."""


@dataclass(frozen=True)
class Camera:
    """A site's camera. gains: one factor per channel (brightness times colour); sharpness: how much of the fine
    detail (what a Gaussian blur of 0.6 pixels takes away) is added, or, below 0, lost."""

    gains: tuple[float, ...]
    sharpness: float

    def __call__(self, images: Images) -> Images:
        """uint8 [n, height, width, channels] as this camera sees them."""
        from scipy.ndimage import gaussian_filter

        pixels = images.astype(np.float32)
        pixels += self.sharpness * (pixels - gaussian_filter(pixels, sigma=(0, 0.6, 0.6, 0)))
        pixels *= np.asarray(self.gains, dtype=np.float32)
        return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)


def draw_camera(rng: np.random.Generator, channels: int, spread: float = 0.1) -> Camera:
    """A camera drawn at random: brightness and, for colour images, each channel within ± spread."""
    brightness = 1.0 + rng.uniform(-spread, spread)
    colour = 1.0 + rng.uniform(-spread, spread, size=channels) / 2 if channels > 1 else np.ones(1)
    return Camera(tuple(float(g) for g in brightness * colour), sharpness=float(rng.uniform(-0.4, 0.3)))


CAPTURE_NOISE = (1.0, 2.0)
"""Standard deviation in grey levels of 255, drawn for each picture: no two pictures of a scene are the same."""


def capture(camera: Camera, images: Images, rng: np.random.Generator) -> Images:
    """uint8 [n, height, width, channels] as this camera takes them, each with a little noise of its own.

    The rows that sites learn from and the live traffic both come through here, so that the one is like the other.
    """
    sigma = rng.uniform(*CAPTURE_NOISE, size=(len(images), 1, 1, 1))
    noisy = camera(images) + sigma * rng.normal(size=images.shape)
    return np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)


@dataclass(frozen=True)
class Corruption:
    """A named drift with its named severities, each the share of the light that is lost, in (0, 1)."""

    name: str
    severities: Mapping[str, float]
    apply: Callable[[Images, float, np.random.Generator], Images]

    def strength(self, severity: str) -> float:
        """The number that a named severity stands for. Raises BadInput where there is none of that name."""
        if severity not in self.severities:
            raise BadInput(f"{self.name} has no severity {severity!r}; it has {', '.join(self.severities)}")
        return self.severities[severity]


def low_light(images: Images, severity: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Images with the share `severity` of their light gone: uint8 in, uint8 out, no automatic exposure.

    The photons of a pixel follow Poisson(intensity · (1 - severity) · full well); the read noise is added after.
    """
    electrons = images.astype(np.float32) / 255.0 * (1.0 - severity) * FULL_WELL_ELECTRONS
    seen = rng.poisson(electrons) + rng.normal(0.0, READ_NOISE_ELECTRONS, size=images.shape)
    return np.rint(np.clip(seen / FULL_WELL_ELECTRONS, 0.0, 1.0) * 255.0).astype(np.uint8)


LOW_LIGHT = Corruption("low-light", {"mild": 0.3, "medium": 0.5, "strong": 0.7, "severe": 0.9}, low_light)
CORRUPTIONS: Mapping[str, Corruption] = {LOW_LIGHT.name: LOW_LIGHT}
