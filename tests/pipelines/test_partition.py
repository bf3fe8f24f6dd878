"""Sites from pooled data: every row to exactly one site, the same way every time, through that site's camera."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sites import TINY, pictures, rows_of

from models.camera import Camera
from models.images import encode_png, read_image
from models.task import Rows
from pipelines.partition import SitePlan, divide, plan_sites
from pipelines.settings import SiteSettings


def plan(seed: int = 0, **values: float) -> SitePlan:
    return plan_sites(TINY, SiteSettings(**({"count": 4} | values)), seed)


def untouched() -> SitePlan:
    """Sites whose cameras change nothing, so that rows can be recognised."""
    cameras = {name: Camera((1.0,), 0.0) for name in ("a", "b", "c")}
    return SitePlan(cameras, {name: np.ones(3) for name in cameras})


@given(count=st.integers(0, 60), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_every_row_goes_to_exactly_one_site_with_its_label(count: int, seed: int) -> None:
    # Each picture is of one grey, four levels apart, so that it is recognised under the noise of its capture.
    greys = [np.full((8, 8, 1), 4 * number + 8, dtype=np.uint8) for number in range(count)]
    rows = Rows(greys, rows_of(count, 5).labels)
    divided = divide(rows, untouched(), TINY, seed)
    pairs = [pair for own in divided.values() for pair in zip(own.images, own.labels, strict=True)]
    found = {round((float(np.mean(image)) - 8) / 4): label for image, label in pairs}
    assert len(pairs) == count
    assert found == dict(enumerate(rows.labels))
    assert set(divided) == {"a", "b", "c"}


def test_the_same_seed_divides_the_same_way_and_another_does_not() -> None:
    rows = rows_of(90, 5)
    one, same, other = (divide(rows, plan(seed), TINY, seed) for seed in (1, 1, 2))
    assert all(one[s].labels == same[s].labels for s in one)
    assert all(np.array_equal(a, b) for s in one for a, b in zip(one[s].images, same[s].images, strict=True))
    assert any(one[s].labels != other[s].labels for s in one)


def test_rows_that_cannot_be_read_pass_through_as_they_are() -> None:
    wrong = [b"no image", np.zeros((3, 3), dtype=np.uint8), None, np.full((8, 8), np.nan), "a path"]
    divided = divide(Rows(wrong, [0, None, 1, 2, 9]), plan(), TINY, 0)
    passed = [image for own in divided.values() for image in own.images]
    assert len(passed) == len(wrong)
    assert all(any(image is each for each in wrong) for image in passed)


@pytest.mark.parametrize("label", [None, 3, -1, "cat", 1.5, [1], float("nan")])
def test_a_row_of_any_label_finds_a_site(label: object) -> None:
    image = pictures(np.array([0]), 1)[0]
    divided = divide(Rows([image], [label]), plan(), TINY, 0)  # type: ignore[list-item]
    assert [own.labels for own in divided.values() if len(own)] == [[label]]


def test_a_picture_is_seen_through_the_camera_in_whatever_form_it_came() -> None:
    image = pictures(np.array([1]), 2)[0]
    dark = SitePlan({"a": Camera((0.5,), 0.0)}, {"a": np.ones(3)})
    forms = [image, image[:, :, 0], encode_png(image), image / 255.0]
    divided = divide(Rows(forms, [1] * 4), dark, TINY, 0)
    seen = [read_image(each, TINY.input) for each in divided["a"].images]
    for each in seen:
        assert np.abs(each.astype(int) - np.rint(image / 2.0)).max() <= 12  # the noise of a capture
        assert each.mean() == pytest.approx(image.mean() / 2, rel=0.05)


def test_sites_differ_in_label_mix_the_more_the_smaller_alpha_and_none_lacks_a_class() -> None:
    def spread(alpha: float) -> float:
        shares = []
        for seed in range(20):
            own = np.stack(list(plan(seed, label_mix_alpha=alpha).label_mix.values()))
            assert own.min() > 0
            assert np.allclose(own.sum(axis=0), 1.0)
            shares.append(own.std())
        return float(np.mean(shares))

    assert spread(0.1) > spread(1.0) > spread(100.0)


def test_sites_differ_in_their_cameras() -> None:
    made = plan(camera_spread=0.2)
    assert made.sites == ["site-1", "site-2", "site-3", "site-4"]
    assert len({camera.gains for camera in made.cameras.values()}) == 4
    assert plan(3).cameras == plan(3).cameras
