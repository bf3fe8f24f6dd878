"""Images at the edges of the system: bytes in, arrays inside, tensors for the model.

Everywhere between the edges an image is `uint8 [height, width, channels]`, on disk a PNG: what was predicted on
can be reproduced bit by bit from the log.
"""

from __future__ import annotations

import base64
import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from models.errors import BadInput

if TYPE_CHECKING:
    import torch

Images = NDArray[np.uint8]
"""uint8 [n, height, width, channels]"""

MAX_PIXELS = 4_000_000
"""Larger images are refused before they are decoded: a small PNG can unpack to gigabytes."""

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
"""Others are refused by their first bytes: among them are some that Pillow hands to outside programs."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class ImageInput:
    """The input schema of an image task."""

    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels), as arrays are stored."""
        return (self.height, self.width, self.channels)

    def describe(self) -> str:
        kind = "greyscale" if self.channels == 1 else "RGB"
        return f"{self.width}×{self.height} {kind}"


def data_uri(png: bytes) -> str:
    """An address that holds the picture itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """PNG bytes of one image, uint8 [height, width, 1 or 3]. The same pixels give the same bytes.

    Written out (PNG specification, third edition, W3C 2025), as a service packs every picture that it is asked about:
    Pillow's writer takes two to four times as long. Every line is stored as its difference from the one above.
    """
    height, width, channels = image.shape
    flat = np.ascontiguousarray(image).reshape(height, width * channels)
    lines = np.empty((height, 1 + width * channels), np.uint8)
    lines[:, 0] = _UP
    lines[:1, 1:] = flat[:1]
    np.subtract(flat[1:], flat[:-1], out=lines[1:, 1:])
    head = struct.pack(">IIBBBBB", width, height, 8, _COLOUR[channels], 0, 0, 0)
    return b"".join((PNG_SIGNATURE, _part(b"IHDR", head), _part(b"IDAT", zlib.compress(lines.data, 1)), _END))


def _part(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG: length, kind, data, check sum."""
    checked = kind + data
    return b"".join((len(data).to_bytes(4, "big"), checked, zlib.crc32(checked).to_bytes(4, "big")))


_UP = 2  # the filter "up"
_COLOUR = {1: 0, 3: 2}  # channels → colour type: greyscale, truecolour
_END = _part(b"IEND", b"")


def decode_png(data: bytes, schema: ImageInput) -> NDArray[np.uint8]:
    """uint8 [height, width, channels] from the bytes of an image file.

    Raises:
        BadInput: the bytes are no readable image, or the size is not the task's.
    """
    if not data:
        raise BadInput("the image is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise BadInput(
                    f"the image is {picture.width}×{picture.height} pixels; this task takes {schema.describe()}"
                )
            if picture.mode.startswith(("I", "F")):
                raise BadInput("the image has more than 8 bits a channel; scale its values to 0..255 and send 8 bits")
            pixels = np.asarray(picture.convert("L" if schema.channels == 1 else "RGB"), dtype=np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f"the bytes are not a readable image ({type(error).__name__})") from error
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.shape != schema.shape:
        height, width = pixels.shape[:2]
        raise BadInput(f"the image is {width}×{height} pixels; this task takes {schema.describe()}")
    return pixels


def from_unit_floats(values: NDArray[np.floating], schema: ImageInput) -> NDArray[np.uint8]:
    """uint8 image from floats in [0, 1], shape [height, width] or [height, width, channels].

    Raises:
        BadInput: wrong shape, NaN or infinite values, values outside [0, 1].
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 2 and schema.channels == 1:
        array = array[:, :, None]
    if array.shape != schema.shape:
        raise BadInput(f"the image has shape {list(array.shape)}; this task takes {list(schema.shape)}")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):  # nor is NaN, which both of them hand on
        if not np.isfinite(array).all():
            raise BadInput("the image has NaN or infinite values")
        raise BadInput(f"pixel values are in [{low:g}, {high:g}]; they must be in [0, 1]")
    return np.rint(array * 255.0).astype(np.uint8)


def read_image(image: object, schema: ImageInput) -> NDArray[np.uint8]:
    """One raw image, whatever its form, as uint8 [height, width, channels].

    Raises:
        BadInput: with what is wrong with it.
    """
    if isinstance(image, bytes):
        return decode_png(image, schema)
    if not isinstance(image, np.ndarray):
        raise BadInput(f"the image is a {type(image).__name__}, not an array or the bytes of an image file")
    if image.dtype == np.uint8:
        array = image[:, :, None] if image.ndim == 2 else image
        if array.shape != schema.shape:
            raise BadInput(f"the image has shape {list(image.shape)}; this task takes {list(schema.shape)}")
        return array
    if not np.issubdtype(image.dtype, np.floating):
        raise BadInput(f"the image has values of type {image.dtype}; uint8 or floats in [0, 1] are understood")
    return from_unit_floats(image, schema)


def to_tensor(images: Images) -> torch.Tensor:
    """float32 [n, channels, height, width] in [0, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float().div_(255.0)


def content_hash(data: bytes) -> str:
    """The first 128 bits of SHA-256, in hex: the name of a row everywhere in fedloop."""
    return hashlib.sha256(data).hexdigest()[:32]
