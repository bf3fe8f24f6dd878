"""Quality columns say how a picture was taken: each answers to what it is named after."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.quality import QUALITY_COLUMNS, quality


def flat(value: int, channels: int = 1, size: int = 16) -> np.ndarray:
    return np.full((1, size, size, channels), value, dtype=np.uint8)


@given(seed=st.integers(0, 2**32), channels=st.sampled_from([1, 3]), count=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_every_image_has_finite_columns_that_ignore_its_neighbours(seed: int, channels: int, count: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (count, 9, 7, channels), dtype=np.uint8)
    table = quality(images)
    assert list(table.columns) == list(QUALITY_COLUMNS)
    assert np.isfinite(table.to_numpy()).all()
    assert ((table >= 0) & (table <= 4)).all(axis=None)
    for column in ("brightness", "contrast", "saturation"):
        assert table[column].between(0, 1).all()
    alone = quality(images[:1]).to_numpy()
    assert np.allclose(alone, table.to_numpy()[:1], atol=1e-6)


def test_a_flat_picture_has_brightness_and_nothing_else() -> None:
    row = quality(flat(51)).iloc[0]
    assert row["brightness"] == pytest.approx(0.2, abs=1e-6)
    assert row[["contrast", "sharpness", "saturation", "noise"]].abs().max() < 1e-5


@pytest.mark.parametrize("deviation", [0.02, 0.05, 0.1])
def test_noise_estimates_the_standard_deviation_of_the_noise(deviation: float) -> None:
    slope = np.linspace(60, 200, 64)[:, None] + np.linspace(-20, 20, 64)[None, :]
    noisy = slope + np.random.default_rng(0).normal(0, 255 * deviation, size=(64, 64))
    image = np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)[None, :, :, None]
    assert quality(image)["noise"].iloc[0] == pytest.approx(deviation, rel=0.12)


def test_blur_lowers_sharpness_and_light_does_not_raise_it() -> None:
    from scipy.ndimage import gaussian_filter

    sharp = np.random.default_rng(1).integers(0, 120, (1, 32, 32, 1), dtype=np.uint8)
    blurred = gaussian_filter(sharp, sigma=(0, 1, 1, 0))
    assert quality(blurred)["sharpness"].iloc[0] < 0.5 * quality(sharp)["sharpness"].iloc[0]
    lifted = (sharp + 100).astype(np.uint8)
    assert quality(lifted)["sharpness"].iloc[0] == pytest.approx(quality(sharp)["sharpness"].iloc[0], rel=1e-4)


def test_saturation_is_zero_for_grey_and_one_for_pure_colour() -> None:
    assert quality(flat(130, channels=3))["saturation"].iloc[0] == 0.0
    red = flat(0, channels=3)
    red[..., 0] = 255
    assert quality(red)["saturation"].iloc[0] == pytest.approx(1.0)
