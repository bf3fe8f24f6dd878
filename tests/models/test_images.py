"""Images at the edges: what goes in as pixels comes out as the same pixels, and what cannot be read says why."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models.errors import BadInput
from models.images import MAX_PIXELS, ImageInput, content_hash, decode_png, encode_png, from_unit_floats, to_tensor

GREY = ImageInput(channels=1, height=6, width=5)
COLOUR = ImageInput(channels=3, height=6, width=5)


def random_pixels(seed: int, schema: ImageInput) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, schema.shape, dtype=np.uint8)


def saved(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind)
    return buffer.getvalue()


@given(seed=st.integers(0, 2**32), schema=st.sampled_from([GREY, COLOUR]))
@settings(max_examples=30)
def test_pixels_survive_encoding_and_the_same_pixels_have_one_name(seed: int, schema: ImageInput) -> None:
    pixels = random_pixels(seed, schema)
    data = encode_png(pixels)
    assert np.array_equal(decode_png(data, schema), pixels)
    assert content_hash(data) == content_hash(encode_png(pixels.copy()))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30)
def test_images_survive_as_floats_in_the_unit_interval(seed: int) -> None:
    pixels = random_pixels(seed, COLOUR)
    assert np.array_equal(from_unit_floats(pixels / 255.0, COLOUR), pixels)


@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"]))
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_are_an_image_or_bad_input_and_nothing_else(data: st.DataObject, kind: str) -> None:
    damaged = bytearray(saved(Image.fromarray(random_pixels(0, COLOUR)), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    keep = data.draw(st.integers(0, len(damaged)))
    try:
        assert decode_png(bytes(damaged[:keep]), COLOUR).shape == COLOUR.shape
    except BadInput as error:
        assert str(error)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"not an image at all", "not a readable image"),
        (encode_png(random_pixels(0, GREY))[:-25], "not a readable image"),
        (saved(Image.new("L", (7, 6))), "7×6 pixels; this task takes 5×6 greyscale"),
        (saved(Image.new("1", (3000, 3000))), "3000×3000"),
        (saved(Image.fromarray(np.full((6, 5), 40_000, dtype=np.uint16))), "more than 8 bits"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n%%EndComments\n", "not a readable image"),
    ],
    ids=["empty", "text", "truncated", "wrong size", "bomb", "16 bits", "postscript"],
)
def test_what_cannot_be_read_says_why(data: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        decode_png(data, GREY)


def test_a_small_file_of_many_pixels_is_refused_before_it_is_unpacked() -> None:
    bomb = saved(Image.new("1", (9_000, 9_000)))
    assert len(bomb) < 100_000
    assert MAX_PIXELS < 9_000 * 9_000
    with pytest.raises(BadInput):
        decode_png(bomb, GREY)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((5, 6)), "shape"),
        (np.full((6, 5), np.nan), "NaN or infinite"),
        (np.full((6, 5), np.inf), "NaN or infinite"),
        (np.full((6, 5), 1.01), r"they must be in \[0, 1\]"),
        (np.full((6, 5), -0.01), r"they must be in \[0, 1\]"),
    ],
)
def test_floats_that_are_no_image_say_why(values: NDArray[np.float64], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        from_unit_floats(values, GREY)


def test_grey_and_colour_files_become_what_the_task_takes() -> None:
    colour = saved(Image.fromarray(random_pixels(1, COLOUR)))
    grey = saved(Image.fromarray(random_pixels(1, GREY)[:, :, 0]))
    assert decode_png(colour, GREY).shape == (6, 5, 1)
    assert decode_png(grey, COLOUR).shape == (6, 5, 3)


def test_tensors_are_channels_first_in_the_unit_interval() -> None:
    images = np.stack([random_pixels(i, COLOUR) for i in range(4)])
    tensor = to_tensor(images)
    assert tuple(tensor.shape) == (4, 3, 6, 5)
    assert 0.0 <= float(tensor.min()) <= float(tensor.max()) <= 1.0
    assert float(tensor[2, 1, 3, 4]) == pytest.approx(images[2, 3, 4, 1] / 255.0)
