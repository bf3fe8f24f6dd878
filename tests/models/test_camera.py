"""Cameras and low light: physics that can be checked, and everything drawn depends on its generator alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.camera import CORRUPTIONS, FULL_WELL_ELECTRONS, LOW_LIGHT, READ_NOISE_ELECTRONS, draw_camera, low_light


def grey(value: int, count: int = 20, size: int = 32) -> np.ndarray:
    return np.full((count, size, size, 1), value, dtype=np.uint8)


@given(seed=st.integers(0, 2**32), channels=st.sampled_from([1, 3]), spread=st.floats(0, 0.3))
@settings(max_examples=30, deadline=None)
def test_a_camera_keeps_shape_and_type_and_stays_within_its_spread(seed: int, channels: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    camera = draw_camera(rng, channels, spread)
    assert len(camera.gains) == channels
    assert all(
        (1 - spread) * (1 - spread / 2) - 1e-9 <= g <= (1 + spread) * (1 + spread / 2) + 1e-9 for g in camera.gains
    )
    images = rng.integers(0, 256, (3, 8, 6, channels), dtype=np.uint8)
    seen = camera(images)
    assert seen.shape == images.shape
    assert seen.dtype == np.uint8
    assert np.array_equal(seen, camera(images))
    assert np.array_equal(camera(images[1:2])[0], seen[1]), "an image looks the same alone and among others"


def test_cameras_differ_and_the_same_seed_draws_the_same() -> None:
    drawn = [draw_camera(np.random.default_rng(seed), 3) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


@pytest.mark.parametrize("corruption", CORRUPTIONS.values(), ids=lambda c: c.name)
def test_a_corruption_has_named_severities_and_is_a_function_of_its_generator(corruption: object) -> None:
    assert corruption is LOW_LIGHT or corruption.severities  # type: ignore[attr-defined]
    images = grey(120, count=2, size=8)
    for severity in corruption.severities.values():  # type: ignore[attr-defined]
        assert 0 < severity < 1
        first, again, other = (
            corruption.apply(images, severity, np.random.default_rng(seed))  # type: ignore[attr-defined]
            for seed in (0, 0, 1)
        )
        assert first.shape == images.shape
        assert first.dtype == np.uint8
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("severity", [0.3, 0.5, 0.7])
def test_low_light_takes_that_share_of_the_light(severity: float) -> None:
    seen = low_light(grey(200), severity, np.random.default_rng(0)).astype(float)
    assert seen.mean() == pytest.approx(200 * (1 - severity), rel=0.05)


def test_low_light_has_shot_noise_and_read_noise() -> None:
    signal = 128 / 255 * FULL_WELL_ELECTRONS * 0.5
    seen = low_light(grey(128), 0.5, np.random.default_rng(0)).astype(float) / 255 * FULL_WELL_ELECTRONS
    assert seen.var() == pytest.approx(signal + READ_NOISE_ELECTRONS**2, rel=0.15)


def test_every_severity_is_darker_than_the_one_before() -> None:
    means = [
        low_light(grey(220), severity, np.random.default_rng(0)).mean()
        for severity in sorted(LOW_LIGHT.severities.values())
    ]
    assert means == sorted(means, reverse=True)
    assert len(set(means)) == len(means)
